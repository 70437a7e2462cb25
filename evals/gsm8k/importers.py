"""Runs of other harnesses as runs of ours: lm-eval's ``samples_*.jsonl`` and sgl-eval's ``output-rs*.jsonl``.

Read from their sources: lm-eval (``--log_samples``) writes one object per document and filter, with ``doc_id``,
``doc``, ``target``, ``arguments``, ``resps``, ``filter`` and ``prompt_hash``; sgl-eval's ``PredictionsWriter`` one per
sample, with ``generation``, ``id``, ``expected_answer``, ``num_generated_tokens``, ``problem`` and, of late,
``finish_reason``, in order of completion. Both turn a failed request into an empty text; an empty completion is
therefore taken as an error and never as an answer, and the comparison counts it in the way that hurts its claim most.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.errors import EvalError
from evals.gsm8k.answers import number
from evals.gsm8k.data import gold
from evals.gsm8k.samples import EMPTY, FAILED, Header, Sample


@dataclass(frozen=True)
class Imported:
    header: Header
    samples: tuple[Sample, ...]


def lm_eval(path: str | Path, *, arm: str, model: str = "unknown", kernels: dict[str, str] | None = None) -> Imported:
    """The samples of one lm-eval log. A document occurs once for each filter, with the same texts: one is taken.

    ``resps`` holds, for each request of a document, the list of its repeats; other versions nest them otherwise. Every
    text in it is one repeat, and a document without any text is an empty completion: no document gets lost.
    Raises EvalError with file and line.
    """
    file = _one(Path(path), "samples_*.jsonl")
    samples: dict[tuple[str, int], Sample] = {}
    questions: dict[int, str] = {}
    generation: dict[str, Any] = {}
    for row, where in _rows(file):
        generation = generation or _generation(row)
        try:
            index, target, responses = row["doc_id"], row["target"], list(_texts(row["resps"]))
            question = row["doc"]["question"]
        except (KeyError, TypeError):
            raise EvalError(
                f"{where} is no sample of lm-eval's gsm8k: doc_id, doc, target or resps is missing"
            ) from None
        if type(index) is not int or not isinstance(question, str):
            raise EvalError(f"{where} is no sample of lm-eval's gsm8k: doc_id is no number, or the question no text")
        right = _gold(target, where)
        questions[index] = question
        prompt = str(row.get("prompt_hash") or "")
        for repeat, text in enumerate(responses or [None]):
            sample = _sample(f"gsm8k-{index}", index, right, text, repeat, prompt)
            known = samples.setdefault((sample.question, repeat), sample)
            if known.text != sample.text:
                raise EvalError(f"{where}: document {index} is in the file with two different completions")
    settings = {"extractor": "flexible", "filters": "of lm-eval", **generation}
    return _imported(file, "lm-eval", "lm-eval-gsm8k/imported", arm, model, kernels, samples, questions, settings)


def sgl_eval(path: str | Path, *, arm: str, model: str = "unknown", kernels: dict[str, str] | None = None) -> Imported:
    """The samples of an sgl-eval run: one ``output-rs*.jsonl``, or a folder with one of them for each repeat."""
    root = Path(path)
    files = sorted(root.glob("output-rs*.jsonl")) if root.is_dir() else [root]
    if not files:
        raise EvalError(f"{root} holds no output-rs*.jsonl")
    samples: dict[tuple[str, int], Sample] = {}
    questions: dict[int, str] = {}
    for place, file in enumerate(files):
        found = re.fullmatch(r"output-rs(\d+)", file.stem)
        repeat = int(found[1]) if found and root.is_dir() else place
        for row, where in _rows(file):
            try:
                name, text, target = str(row["id"]), row["generation"], row["expected_answer"]
            except (KeyError, TypeError):
                raise EvalError(
                    f"{where} is no sample of sgl-eval: id, generation or expected_answer is missing"
                ) from None
            tail = re.search(r"(\d+)$", name)
            index = int(tail[1]) if tail else len(questions)
            sample = _sample(
                name,
                index,
                _gold(target, where),
                text,
                repeat,
                "",
                row.get("num_generated_tokens"),
                row.get("finish_reason"),
            )
            if (name, repeat) in samples:
                raise EvalError(f"{where}: question {name} occurs twice in this repeat")
            samples[name, repeat] = sample
            questions[index] = str(row.get("problem", name))
    settings = {"extractor": "boxed"}
    return _imported(root, "sgl-eval", "boxed-chat/imported", arm, model, kernels, samples, questions, settings)


def _texts(responses: Any, depth: int = 0) -> Iterator[Any]:
    """Every completion in ``resps``, however the lists are nested; what is neither list nor text is left to fail."""
    if isinstance(responses, list) and depth < 5:
        for inner in responses:
            yield from _texts(inner, depth + 1)
    elif depth == 0 and not isinstance(responses, str):
        raise TypeError(responses)
    else:
        yield responses


def _generation(row: Any) -> dict[str, Any]:
    """How lm-eval asked (stop strings, temperature, length), from a sample's ``arguments``: {"gen_args_0": {"arg_0":
    prompt, "arg_1": settings}}, in older versions [[prompt, settings]]. Nothing where there is neither."""
    asked = row.get("arguments") if isinstance(row, dict) else None
    try:
        found = asked["gen_args_0"]["arg_1"] if isinstance(asked, dict) else asked[0][1]  # type: ignore[index]
    except (KeyError, IndexError, TypeError):
        return {}
    return {"generation": found} if isinstance(found, dict) else {}


def _one(path: Path, pattern: str) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.rglob(pattern))
    if not files and (summaries := sorted(path.rglob("results_*.json"))):
        raise EvalError(f"{summaries[0]} is {_SUMMARY}")
    if len(files) != 1:
        raise EvalError(f"{path} holds {len(files)} files {pattern}; name the one to import")
    return files[0]


_SUMMARY = "lm-eval's summary, without answers; import samples_gsm8k_*.jsonl (--log_samples)"


def _rows(file: Path) -> Iterator[tuple[Any, str]]:
    """(value, "file:line") of every line. Some versions of lm-eval wrote one JSON list instead (its issue 1493)."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise EvalError(f"cannot read {file} ({error.strerror or error})") from None
    if raw.lstrip().startswith(b"["):
        try:
            yield from ((value, f"{file}, entry {n}") for n, value in enumerate(json.loads(raw), 1))
        except ValueError:
            raise EvalError(f"{file} is not JSON") from None
        return
    if (whole := _one_object(raw)) is not None:
        if "results" in whole or "configs" in whole:
            raise EvalError(f"{file} is {_SUMMARY}")
        yield whole, f"{file}:1"
        return
    lines = raw.split(b"\n")
    for number_, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield json.loads(line), f"{file}:{number_}"
        except ValueError:
            raise EvalError(f"{file}:{number_} is not JSON") from None


def _one_object(raw: bytes) -> dict[str, Any] | None:
    """The object that the whole of ``raw`` is, over one line or several; None where it is lines of objects."""
    first = raw.split(b"\n", 1)[0].strip()
    if raw[:1] != b"{" or (first.endswith(b"}") and raw.strip() != first):
        return None
    try:
        found = json.loads(raw)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _gold(target: object, where: str) -> str:
    text = str(target)
    if "####" in text:
        return gold(text, where)
    value = number(text)
    if value is None:
        raise EvalError(f"{where}: the target {text!r} is no number")
    return format(value, "f")


def _sample(
    name: str,
    order: int,
    right: str,
    text: object,
    repeat: int,
    prompt: str,
    length: object = None,
    finish: object = None,
) -> Sample:
    if text is not None and not isinstance(text, str):
        raise EvalError(f"question {name}: the completion is no text")
    error = FAILED if finish == "error" else None if (text or "").strip() else EMPTY
    tokens = length if type(length) is int and length > 0 else None
    return Sample(
        question=name,
        order=order,
        gold=right,
        text=None if error else text,
        finish=str(finish) if finish and not error else None,
        error=error,
        repeat=repeat,
        prompt_sha256=prompt,
        length=tokens,
    )


def _imported(
    source: Path,
    backend: str,
    profile: str,
    arm: str,
    model: str,
    kernels: dict[str, str] | None,
    samples: dict[tuple[str, int], Sample],
    questions: dict[int, str],
    settings: dict[str, Any],
) -> Imported:
    if not samples:
        raise EvalError(f"{source} holds no sample")
    # Their files do not name their data: what was asked is its own fingerprint, the same in both arms.
    digest = hashlib.sha256(
        "\0".join(questions[i] for i in sorted(questions)).encode("utf-8", "surrogatepass")
    ).hexdigest()
    asked = len({q for q, _ in samples})
    header = Header(
        arm=arm,
        model=model,
        backend=backend,
        profile=profile,
        data="gsm8k (as imported)",
        data_sha256=digest,
        questions=asked,
        kernels=dict(kernels or {}),
        settings=settings,
        provenance={"imported_from": source.name},
    )
    return Imported(header, tuple(sorted(samples.values(), key=lambda s: (s.repeat, s.order))))
