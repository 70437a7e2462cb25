"""Files of other harnesses, made with the fields that their sources write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

QUESTIONS = ["How many?", "How many more?", "And now?"]


def lm_eval_row(index: int, text: str | None, filter_name: str, gold: int | None = None) -> dict[str, Any]:
    """One line of ``samples_gsm8k_*.jsonl`` as lm-eval's evaluator builds it (``log_samples``)."""
    target = f"it is\n#### {gold if gold is not None else index}"
    return {
        "doc_id": index,
        "doc": {"question": QUESTIONS[index % 3], "answer": target},
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": "Question: ...", "arg_1": {"until": ["Question:"]}}},
        "resps": [[text]],
        "filtered_resps": ["[invalid]"],
        "filter": filter_name,
        "metrics": ["exact_match"],
        "doc_hash": "d" * 64,
        "prompt_hash": f"{index}" * 64,
        "target_hash": "t" * 64,
        "exact_match": 0.0,
    }


def sgl_eval_row(name: str, text: str | None, answer: str, tokens: int = 12) -> dict[str, Any]:
    """One line of ``output-rs0.jsonl`` as sgl-eval's PredictionsWriter builds it."""
    return {
        "generation": text,
        "id": name,
        "expected_answer": answer,
        "num_generated_tokens": tokens,
        "num_reasoning_tokens": 0,
        "num_answer_tokens": tokens,
        "problem": f"problem {name}",
        "generation_start_time": 1.0,
        "generation_end_time": 2.0,
        "predicted_answer": "1",
        "symbolic_correct": True,
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
