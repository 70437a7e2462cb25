"""A real server of others, ``transformers serve``, with a tiny random Llama: loaded on demand, no prompt scores.

It needs the extra ``transformers[serving]`` and accelerate, in this environment or in that of the interpreter named by
EVALS_SERVE_PYTHON. Elsewhere it is skipped with what is missing.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evals.__main__ import main
from evals.gsm8k import store

PYTHON = os.environ.get("EVALS_SERVE_PYTHON", sys.executable)
NEEDED = ("transformers", "fastapi", "uvicorn", "openai", "accelerate", "tokenizers")
START_S = 120


def missing() -> str:
    if sys.executable != PYTHON and not Path(PYTHON).exists():
        return f"EVALS_SERVE_PYTHON names {PYTHON}, which does not exist"
    look = f"import importlib.util as u; print(*[n for n in {NEEDED!r} if u.find_spec(n) is None])"
    found = subprocess.run([PYTHON, "-c", look], capture_output=True, text=True, check=False)
    return f"transformers serve needs {found.stdout.strip()}, not installed" if found.stdout.strip() else ""


REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "transformers serve is there")


def tiny_model(folder: Path) -> None:
    """A random Llama of two layers with a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "</s>": 1, **{c: i + 2 for i, c in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    folder = tmp_path_factory.mktemp("serve")
    tiny_model(folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / "log").open("w")
    start = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    child = subprocess.Popen(
        [PYTHON, "-c", start, "serve", "--host", "127.0.0.1", "--port", str(port)],
        stdout=log,
        stderr=log,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    try:
        end = time.monotonic() + START_S
        while "Uvicorn running" not in (folder / "log").read_text():
            waiting = child.poll() is None and time.monotonic() < end
            assert waiting, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", str(folder / "model")
    finally:
        child.kill()
        child.wait()
        log.close()


def test_both_endpoints_and_no_prompt_scores(
    served: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, model = served
    file = tmp_path / "test.jsonl"
    rows = ({"question": f"How much is {i}?", "answer": f"It is {i}.\n#### {i}"} for i in range(8))
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    words = [
        "gsm8k",
        "run",
        "--server",
        url,
        "--model",
        model,
        "--name",
        "a",
        "--data",
        str(file),
        "--any-data",
        "--max-tokens",
        "6",
        "--concurrency",
        "2",
    ]
    # The first run meets the server before it has loaded anything.
    for profile in ("plain", "boxed-chat"):
        out = tmp_path / profile
        assert main([*words, "--profile", profile, "--out", str(out)]) == 0, capsys.readouterr().err
        run = store.read(out)
        assert len(run.samples) == 8
        assert not run.errors
        assert {s.finish for s in run.samples} <= {"length", "stop"}
        assert all(s.length is not None and 1 <= s.length <= 6 for s in run.samples)
    # Greedy, one model: the same questions again give the same answers.
    assert main([*words, "--profile", "plain", "--out", str(tmp_path / "again")]) == 0
    texts = [{s.question: s.text for s in store.read(tmp_path / n).samples} for n in ("plain", "again")]
    assert texts[0] == texts[1]
    capsys.readouterr()
    # It takes echo and logprobs, and ignores them.
    assert main([*words, "--profile", "plain", "--out", str(tmp_path / "t"), "--score-solutions"]) == 2
    assert "gives no log-probabilities of a prompt" in capsys.readouterr().err
