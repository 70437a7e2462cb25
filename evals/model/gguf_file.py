"""Reads a Llama model from a GGUF file: config, weights dequantized to fp32, and its tokenizer.

Own reader: the package gguf would be one more to install for 150 lines, on machines that have torch and nothing else,
and its tensors still have to be put into the order of Hugging Face's checkpoints. Of the block formats those that small
Llama files use are decoded: F32, F16, Q4_1 (32 4-bit values, fp16 scale and minimum) and Q8_0 (32 signed bytes, fp16
scale). llama.cpp stores the rows of q and k in the order of its own rotary form; they are put back in the order of
halves.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from evals.errors import EvalError, NotDecided

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
# ggml type -> (name, elements per block, bytes per block)
BLOCKS = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 3: ("Q4_1", 32, 20), 8: ("Q8_0", 32, 34)}
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


@dataclass(frozen=True)
class Llama:
    """config: as in Hugging Face's config.json. state: names as in its checkpoints, fp32. facts: GGUF metadata,
    values as the file has them: numbers, texts, lists of them."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    facts: dict[str, Any]


class _Entry(NamedTuple):
    """One tensor of the file. kind: ggml type. offset: of its first byte from the start of the data."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    def raw(self, data: mmap.mmap, start: int) -> Tensor:
        """Its blocks, uint8 [bytes]; start: of the data in the file."""
        _, elements, size = BLOCKS[self.kind]
        first = start + self.offset
        count = math.prod(self.shape) // elements * size
        return torch.frombuffer(bytearray(data[first : first + count]), dtype=torch.uint8)


class _Reader:
    """Values of the file one after the other. at: offset of the next."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0

    def take(self, form: str) -> Any:
        value = struct.unpack_from(form, self.data, self.at)[0]
        self.at += struct.calcsize(form)
        return value

    def entry(self) -> _Entry:
        name = self.text()
        shape = tuple(reversed([self.take("<Q") for _ in range(self.take("<I"))]))
        return _Entry(name, shape, self.take("<I"), self.take("<Q"))

    def text(self) -> str:
        size = self.take("<Q")
        self.at += size
        return self.data[self.at - size : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            inner, count = self.take("<I"), self.take("<Q")
            return [self.value(inner) for _ in range(count)]
        return self.take(SCALARS[kind])


def _dequantized(raw: Tensor, kind: int, shape: tuple[int, ...]) -> Tensor:
    """fp32 tensor of ``shape`` from the bytes (uint8 [bytes]) of its blocks. kind: ggml type, a key of ``BLOCKS``."""
    if kind in (0, 1):
        return raw.view(torch.float32 if kind == 0 else torch.float16).float().view(shape)
    blocks = raw.view(-1, BLOCKS[kind][2])
    scale = blocks[:, :2].contiguous().view(torch.float16).float()
    if kind == 8:
        return (scale * blocks[:, 2:].contiguous().view(torch.int8).float()).view(shape)
    least = blocks[:, 2:4].contiguous().view(torch.float16).float()
    packed = blocks[:, 4:]
    nibbles = torch.cat([packed & 15, packed >> 4], dim=1).float()
    return (scale * nibbles + least).view(shape)


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of q or k, [N, K], from llama.cpp's pairs back to halves."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()


def read(path: str | Path) -> Llama:
    """The model in a GGUF file; EvalError with one sentence for anything that is not a Llama GGUF of known types."""
    file = Path(path)
    try:
        with file.open("rb") as handle:
            return _read(file, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise EvalError(f"cannot read {file}: {error.strerror or error}") from None
    except (struct.error, KeyError, ValueError, RuntimeError) as error:
        raise EvalError(
            f"{file} is no complete GGUF file of known types: {' '.join(str(error).split())[:120]}"
        ) from None


def _read(file: Path, data: mmap.mmap) -> Llama:
    reader = _Reader(data)
    if data[:4] != b"GGUF":
        raise EvalError(f"{file} is not a GGUF file")
    reader.at = 4
    version = reader.take("<I")
    if version not in (2, 3):
        raise EvalError(f"{file} is GGUF version {version}; known: 2 and 3")
    tensors, pairs = reader.take("<Q"), reader.take("<Q")
    facts = {}
    for _ in range(pairs):
        name = reader.text()
        facts[name] = reader.value(reader.take("<I"))
    if facts.get("general.architecture") != "llama":
        raise EvalError(f"{file} holds a {facts.get('general.architecture')!r}; only llama is read")
    entries = [reader.entry() for _ in range(tensors)]
    alignment = facts.get("general.alignment", 32)
    start = -(-reader.at // alignment) * alignment
    heads, kv_heads = facts["llama.attention.head_count"], facts["llama.attention.head_count_kv"]
    state = {}
    for entry in entries:
        if entry.kind not in BLOCKS:
            raise EvalError(f"{file}: tensor {entry.name} has ggml type {entry.kind}; known: F32, F16, Q4_1, Q8_0")
        weight = _dequantized(entry.raw(data, start), entry.kind, entry.shape)
        prefix, _, rest = entry.name.partition(".")
        if prefix == "blk":
            layer, _, part = rest.partition(".")
            if part in ("attn_q.weight", "attn_k.weight"):
                weight = _halves(weight, heads if part == "attn_q.weight" else kv_heads)
            state[f"model.layers.{layer}.{NAMES[part]}"] = weight
        else:
            state[NAMES[entry.name]] = weight
    return Llama(_config(facts, tied="lm_head.weight" not in state), state, facts)


def _config(facts: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    """What Hugging Face's config.json says of such a model. tied: the head is the embedding."""
    return {
        "model_type": "llama",
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "rms_norm_eps": facts["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": facts.get("llama.rope.freq_base", 10000.0),
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": tied,
    }


def tokenizer(facts: dict[str, Any]) -> Tokenizer:
    """A tokenizer from GGUF metadata: byte-level BPE whose digits are tokens of their own (``smollm``)."""
    if facts.get("tokenizer.ggml.model") != "gpt2" or facts.get("tokenizer.ggml.pre") != "smollm":
        kinds = f"{facts.get('tokenizer.ggml.model')}/{facts.get('tokenizer.ggml.pre')}"
        raise EvalError(f"a GGUF tokenizer of kind {kinds} is not read; known: gpt2/smollm")
    try:
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers
    except ModuleNotFoundError:
        raise NotDecided("the tokenizer of a GGUF file needs the package tokenizers, which is not installed") from None
    tokens = {token: place for place, token in enumerate(facts["tokenizer.ggml.tokens"])}
    merges = []
    for line in facts["tokenizer.ggml.merges"]:
        left, _, right = line.partition(" ")
        merges.append((left, right))
    made = tokenizers.Tokenizer(models.BPE(vocab=tokens, merges=merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    return made
