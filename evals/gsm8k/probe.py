"""What a server says of itself, and whether it gives log-probabilities of a prompt: asked, never assumed.

Fields by the sources of SGLang 0.5 (``/server_info``, formerly ``/get_server_info``; ``/generate`` with
``return_logprob``) and vLLM 0.32 (``/version``; ``prompt_logprobs``); ``echo`` with ``logprobs`` is OpenAI's own.
``transformers serve`` takes the last two and ignores them, and its ``/v1/models`` fails offline.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evals.errors import EvalError
from evals.gsm8k.client import Client, RequestFailed, check_model
from evals.gsm8k.samples import TokenScore

TOP = 5
PROBE_TEXT = "Question: What is 1 + 1?\nAnswer: 2"
VOLATILE = (
    "internal_states",
    "startup_time",
    "created",
    "random_seed",
    "nccl_port",
    "dist_init_addr",
    "port",
    "uptime",
    "last_gen_throughput",
    "memory_usage",
    "load",
    "pid",
    "permission",
    "timestamp",
    "status",
)
"""What changes when the same server is started again, or while it runs: no part of what it is."""
_SECRET = re.compile(r"(api_?key|secret|password|authorization|hf_token|auth_token)", re.IGNORECASE)
_SECRET_OPTION = re.compile(r"(--[\w-]*(?:key|secret|password|hf-token)[= ]+)(\S+)", re.IGNORECASE)


async def wake(client: Client, model: str) -> None:
    """One short completion, so that a server that loads models on demand lists this one; it may fail."""
    try:
        await client.complete(model, PROBE_TEXT, kind="completion", max_tokens=1)
    except RequestFailed:
        return


async def fingerprint(client: Client, model: str) -> dict[str, Any]:
    """Stable words of the server about itself: models, versions, launch arguments; secrets left out.

    Routes that it does not have are left out. EvalError if nothing answers at its address at all.
    """
    found: dict[str, Any] = {}
    for name, paths in (
        ("models", ("/v1/models",)),
        ("server_info", ("/server_info", "/get_server_info")),
        ("model_info", ("/model_info", "/get_model_info")),
        ("version", ("/version",)),
    ):
        for path in paths:
            try:
                reply = await client.get(path, attempts=3)
            except RequestFailed as error:
                if error.disconnected:
                    raise EvalError(f"no server answers at {client.server} ({error})") from None
                continue
            found[name] = stable(reply.body)
            break
    if isinstance(found.get("models"), dict):
        rows = found["models"].get("data", found["models"].get("list"))
        rows = rows if isinstance(rows, list) else []
        # Other models are of no concern: transformers serve lists whatever its cache holds.
        found["models"] = [row for row in rows if isinstance(row, dict) and row.get("id") == model]
    return found


def stable(value: Any) -> Any:
    """JSON without what changes by itself and without secrets."""
    if isinstance(value, dict):
        kept = {str(k): v for k, v in value.items() if k not in VOLATILE}
        return {k: "(withheld)" if _SECRET.search(k) and v else stable(v) for k, v in kept.items()}
    if isinstance(value, list):
        return [stable(v) for v in value]
    if isinstance(value, str):
        return _SECRET_OPTION.sub(r"\1(withheld)", value)
    return value


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first thing in which two fingerprints differ, in words; empty if they are equal."""
    for name in sorted(set(before) | set(now)):
        a, b = before.get(name), now.get(name)
        if a != b and isinstance(a, dict) and isinstance(b, dict):
            return f"{name}: {difference(a, b)}"
        if a != b:
            return f"{name} was {str(a)[:120]} and is {str(b)[:120]}"
    return ""


async def served_model(client: Client, wanted: str | None) -> str:
    """The model to ask: ``wanted``, which must be served where the server lists its models, or the only one."""
    try:
        reply = await client.get("/v1/models", attempts=2)
    except RequestFailed as error:
        if error.disconnected:
            raise EvalError(f"no server answers at {client.server} ({error})") from None
        if wanted:  # transformers serve offline: the list fails, completions do not
            return wanted
        raise EvalError(f"{client.server} does not list its models ({error}); name one with --model") from None
    rows = reply.body.get("data", reply.body.get("list"))
    names = [str(row["id"]) for row in rows or () if isinstance(row, dict) and "id" in row]
    if wanted is None:
        # A server that loads models on demand lists none before the first request.
        if len(names) != 1:
            raise EvalError(f"{client.server} serves {len(names)} models; name one with --model")
        return names[0]
    if names and len(names) == 1 and wanted != names[0].partition("@")[0] and wanted != names[0]:
        raise EvalError(f"{client.server} serves {names[0]!r} and not {wanted!r}")
    return wanted


@dataclass(frozen=True)
class Scored:
    """Every token of a text. ids: token ids, or digests of their text where the server gives only text (``echo``).
    logprob: of each, NaN for the first. top: the most probable ids at each place."""

    ids: tuple[int, ...]
    logprob: tuple[float, ...]
    top: tuple[dict[int, float], ...]


def _sglang(model: str, text: str) -> tuple[str, dict[str, Any]]:
    sampling = {"temperature": 0.0, "max_new_tokens": 0}
    return "/generate", {
        "text": text,
        "sampling_params": sampling,
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": TOP,
    }


def _vllm(model: str, text: str) -> tuple[str, dict[str, Any]]:
    body = {"model": model, "prompt": text, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": TOP}
    return "/v1/completions", {**body, "return_token_ids": True}


def _echo(model: str, text: str) -> tuple[str, dict[str, Any]]:
    body = {"model": model, "prompt": text, "max_tokens": 1, "temperature": 0.0}
    return "/v1/completions", {**body, "echo": True, "logprobs": TOP}


def _read_sglang(body: dict[str, Any], text: str) -> Scored:
    about = body["meta_info"]
    rows = about["input_token_logprobs"]
    tops = about.get("input_top_logprobs") or [None] * len(rows)
    return Scored(
        tuple(int(row[1]) for row in rows),
        tuple(math.nan if row[0] is None else float(row[0]) for row in rows),
        tuple({int(t[1]): float(t[0]) for t in top or () if t[0] is not None} for top in tops),
    )


def _read_vllm(body: dict[str, Any], text: str) -> Scored:
    choice = body["choices"][0]
    rows, ids = choice["prompt_logprobs"], choice.get("prompt_token_ids")
    if ids is None:  # vLLM puts the actual token first; the id of the very first token is then unknown
        ids = [-1 if row is None else int(next(iter(row))) for row in rows]
    tables = [{int(k): v for k, v in (row or {}).items()} for row in rows]
    logprob = tuple(math.nan if not table else float(table[i]["logprob"]) for i, table in zip(ids, tables, strict=True))
    tops = tuple({k: float(v["logprob"]) for k, v in table.items() if v.get("rank", 1) <= TOP} for table in tables)
    return Scored(tuple(int(i) for i in ids), logprob, tops)


def _read_echo(body: dict[str, Any], text: str) -> Scored:
    found = body["choices"][0]["logprobs"]
    places = [n for n, at in enumerate(found["text_offset"]) if at < len(text)]
    tops = found.get("top_logprobs") or [None] * len(found["tokens"])
    return Scored(
        tuple(digest(found["tokens"][n]) for n in places),
        tuple(math.nan if found["token_logprobs"][n] is None else float(found["token_logprobs"][n]) for n in places),
        tuple({digest(k): float(v) for k, v in (tops[n] or {}).items()} for n in places),
    )


def digest(token: str) -> int:
    """A number that represents a token whose id the server does not tell: 60 bits of SHA-256 of its text."""
    return int(hashlib.sha256(token.encode()).hexdigest()[:15], 16)


METHODS: dict[str, tuple[Callable[..., Any], Callable[..., Scored]]] = {
    "sglang": (_sglang, _read_sglang),
    "prompt_logprobs": (_vllm, _read_vllm),
    "echo": (_echo, _read_echo),
}


async def score_text(client: Client, model: str, method: str, text: str, attempts: int | None = None) -> Scored:
    """Log-probabilities of every token of ``text``. RequestFailed, also where they are not there or do not fit."""
    ask, read = METHODS[method]
    path, body = ask(model, text)
    reply = await client.post(path, body, attempts)
    if method != "sglang":
        check_model(model, reply.body.get("model"))
    try:
        scored = read(reply.body, text)
    except (KeyError, TypeError, ValueError, IndexError, StopIteration):
        raise RequestFailed("no log-probabilities of the prompt came back", reply.attempts, 0.0, True, False) from None
    if len(scored.ids) < 2 or not len(scored.ids) == len(scored.logprob) == len(scored.top):
        raise RequestFailed("the log-probabilities do not fit the prompt", reply.attempts, 0.0, True, False)
    return scored


async def find_method(client: Client, model: str) -> str | None:
    """How this server gives log-probabilities of a prompt, shown on a short text; None if in no way."""
    for method in METHODS:
        try:
            scored = await score_text(client, model, method, PROBE_TEXT, attempts=2)
        except RequestFailed as error:
            if error.disconnected:
                raise EvalError(f"no server answers at {client.server} ({error})") from None
            continue
        # A real log-probability is finite and not positive, and no model is certain of every token.
        values = scored.logprob[1:]
        if all(math.isfinite(v) and v <= 1e-6 for v in values) and any(v < -1e-6 for v in values):
            return method
    return None


async def score(client: Client, model: str, method: str, question: str, prompt: str, solution: str) -> TokenScore:
    """Teacher-forced scores of a gold solution after its prompt.

    The solution's tokens are those after the longest common beginning of the tokens of the prompt and of both
    together, so a token that spans the seam counts as the solution's. RequestFailed as ``score_text``.
    """
    alone = await score_text(client, model, method, prompt)
    both = await score_text(client, model, method, prompt + solution)
    start = shared(alone.ids, both.ids)
    if start == 0 and len(alone.ids) > 1 and alone.ids[1:2] == both.ids[1:2]:
        start = 1
    start = max(1, start)
    ids, logprob, top = both.ids[start:], both.logprob[start:], both.top[start:]
    if not ids:
        raise RequestFailed("the solution has no token of its own", 1, 0.0, True, False)
    first = tuple(max(t, key=t.__getitem__) if t else -1 for t in top)
    if -1 in first:
        raise RequestFailed("a place lacks the most probable tokens", 1, 0.0, True, False)
    return TokenScore(question, ids, logprob, first, top if method != "echo" else None)


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
