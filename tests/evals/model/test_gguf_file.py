"""The GGUF reader on a file written here block by block, against values computed by hand, and on broken files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from evals.errors import EvalError
from evals.model import gguf_file

HEADS, HIDDEN = 2, 64


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def q4_1(rows: int, columns: int) -> tuple[bytes, torch.Tensor]:
    """Blocks of Q4_1 and what they mean: code * scale + minimum, low nibbles first."""
    generator = torch.Generator().manual_seed(rows)
    raw, values = b"", []
    for _ in range(rows * columns // 32):
        codes = torch.randint(0, 16, (32,), generator=generator)
        raw += struct.pack("<ee", 0.5, -3.0) + bytes((codes[:16] | (codes[16:] << 4)).tolist())
        values.append(codes * 0.5 - 3.0)
    return raw, torch.cat(values).view(rows, columns)


def q8_0(rows: int, columns: int) -> tuple[bytes, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + 1)
    raw, values = b"", []
    for _ in range(rows * columns // 32):
        codes = torch.randint(-128, 128, (32,), generator=generator)
        raw += struct.pack("<e", 0.25) + struct.pack("<32b", *codes.tolist())
        values.append(codes * 0.25)
    return raw, torch.cat(values).view(rows, columns)


def f32(*shape: int) -> tuple[bytes, torch.Tensor]:
    values = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float32).view(shape) / 8
    return values.numpy().tobytes(), values


def build(**changes: Any) -> tuple[bytes, dict[str, torch.Tensor]]:
    """A one-layer Llama as GGUF bytes, and its tensors by GGUF name."""
    facts: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": 96,
        "llama.block_count": 1,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(8)],
        **changes,
    }
    made = {
        "token_embd.weight": (8, q8_0(8, HIDDEN)),
        "output_norm.weight": (0, f32(HIDDEN)),
        "blk.0.attn_norm.weight": (0, f32(HIDDEN)),
        "blk.0.ffn_norm.weight": (0, f32(HIDDEN)),
        "blk.0.attn_q.weight": (3, q4_1(64, HIDDEN)),
        "blk.0.attn_k.weight": (3, q4_1(32, HIDDEN)),
        "blk.0.attn_v.weight": (3, q4_1(32, HIDDEN)),
        "blk.0.attn_output.weight": (3, q4_1(64, HIDDEN)),
        "blk.0.ffn_gate.weight": (3, q4_1(96, HIDDEN)),
        "blk.0.ffn_up.weight": (3, q4_1(96, HIDDEN)),
        "blk.0.ffn_down.weight": (3, q4_1(HIDDEN, 96)),
    }
    head = b"GGUF" + struct.pack("<IQQ", 3, len(made), len(facts))
    for name, value in facts.items():
        head += text(name)
        if isinstance(value, str):
            head += struct.pack("<I", 8) + text(value)
        elif isinstance(value, float):
            head += struct.pack("<If", 6, value)
        elif isinstance(value, list):
            head += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
        else:
            head += struct.pack("<II", 4, value)
    body = b""
    for name, (kind, (raw, values)) in made.items():
        head += text(name) + struct.pack("<I", values.dim())
        head += b"".join(struct.pack("<Q", size) for size in reversed(values.shape)) + struct.pack(
            "<IQ", kind, len(body)
        )
        body += raw + b"\0" * (-len(raw) % 32)
    head += b"\0" * (-len(head) % 32)
    return head + body, {name: values.float() for name, (_, (_, values)) in made.items()}


def test_blocks_mean_what_the_format_says(tmp_path: Path) -> None:
    raw, wanted = build()
    (tmp_path / "a.gguf").write_bytes(raw)
    read = gguf_file.read(tmp_path / "a.gguf")
    assert torch.equal(read.state["model.embed_tokens.weight"], wanted["token_embd.weight"])
    assert torch.equal(read.state["model.layers.0.mlp.down_proj.weight"], wanted["blk.0.ffn_down.weight"])
    assert torch.equal(read.state["model.layers.0.self_attn.v_proj.weight"], wanted["blk.0.attn_v.weight"])
    assert torch.equal(read.state["model.norm.weight"], wanted["output_norm.weight"])
    assert read.config["tie_word_embeddings"] is True
    assert read.config["num_key_value_heads"] == 1


def test_rotary_rows_go_back_to_halves(tmp_path: Path) -> None:
    """llama.cpp interleaves: its rows 2i and 2i + 1 of a head are the halves' rows i and i + D/2."""
    raw, wanted = build()
    (tmp_path / "a.gguf").write_bytes(raw)
    q = gguf_file.read(tmp_path / "a.gguf").state["model.layers.0.self_attn.q_proj.weight"].view(HEADS, 32, HIDDEN)
    theirs = wanted["blk.0.attn_q.weight"].view(HEADS, 32, HIDDEN)
    for i in range(16):
        assert torch.equal(q[:, i], theirs[:, 2 * i])
        assert torch.equal(q[:, i + 16], theirs[:, 2 * i + 1])


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"not a model at all", "is not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 9) + b"\0" * 32, "GGUF version 9"),
        (build()[0][:300], "no complete GGUF file"),
        (build()[0][:-2000], "no complete GGUF file"),
        (build(**{"general.architecture": "mamba"})[0], "holds a 'mamba'"),
    ],
    ids=["other", "version", "cut head", "cut body", "architecture"],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, raw: bytes, words: str) -> None:
    (tmp_path / "a.gguf").write_bytes(raw)
    with pytest.raises(EvalError, match=words):
        gguf_file.read(tmp_path / "a.gguf")


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="cannot read"):
        gguf_file.read(tmp_path / "none.gguf")
