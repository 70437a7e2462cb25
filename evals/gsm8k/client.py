"""An asynchronous client for OpenAI-compatible servers that never turns a failed request into an answer.

Public clients score exceptions as wrong answers, retry without bound, or hide raw fields. Here a request is tried a
stated number of times with growing pauses; what then still fails is a ``RequestFailed`` with its reason, which the
runner records as an error. The least possible payload is sent: ``transformers serve`` refuses fields it does not know.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.errors import EvalError, NotDecided
from evals.gsm8k.prompts import messages

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
"""What may pass by itself. Everything else (400, 404, 422, ...) says that the request is wrong: it is not repeated."""


@dataclass(frozen=True)
class Limits:
    """concurrency: requests in flight. timeout, connect: seconds for a request and for connecting. attempts: in all.
    pause, longest_pause: seconds before the second attempt, doubled each time, and its cap; half of it is drawn at
    random."""

    concurrency: int = 32
    timeout: float = 600.0
    connect: float = 10.0
    attempts: int = 5
    pause: float = 0.5
    longest_pause: float = 30.0


class RequestFailed(Exception):
    """A request that failed for good. attempts, seconds: what it took. refused: the server says the request is wrong;
    disconnected: the last attempt ended without any response."""

    def __init__(self, sentence: str, attempts: int, seconds: float, refused: bool, disconnected: bool) -> None:
        super().__init__(sentence)
        self.attempts, self.seconds, self.refused, self.disconnected = attempts, seconds, refused, disconnected


class WrongModel(EvalError):
    """The server answers for another model than was asked; nothing it says belongs to this run."""


@dataclass(frozen=True)
class Reply:
    """A JSON object that the server sent, the attempts and the seconds that it took (pauses included)."""

    body: dict[str, Any]
    attempts: int
    seconds: float


@dataclass(frozen=True)
class Completion:
    """finish: ``stop``, ``length``, or what the server says. prompt_length, length: tokens by the server's count."""

    text: str
    finish: str | None
    tokens: tuple[int, ...] | None
    prompt_length: int | None
    length: int | None
    attempts: int
    seconds: float


class Client:
    """One server, one pool of connections; an asynchronous context manager.

    disturbances: how often a connection failed or broke, or the server was overloaded or restarting; after one the
    server may be another. Raises EvalError where httpx is missing or the address is none.
    """

    def __init__(self, server: str, limits: Limits | None = None, api_key: str | None = None) -> None:
        try:
            import httpx
        except ImportError:
            raise NotDecided(
                "asking a server needs httpx, which is not installed (the extra evals brings it)"
            ) from None
        self.limits = limits or Limits()
        self.server = base_url(server)
        self.disturbances = 0
        self._errors = (httpx.TransportError, httpx.DecodingError)
        self._gate = asyncio.Semaphore(self.limits.concurrency)
        self._random = random.Random(0)
        self._http = httpx.AsyncClient(
            base_url=self.server,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(self.limits.timeout, connect=self.limits.connect),
            limits=httpx.Limits(
                max_connections=self.limits.concurrency, max_keepalive_connections=self.limits.concurrency
            ),
            trust_env=False,
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._http.aclose()

    async def get(self, path: str, attempts: int | None = None) -> Reply:
        return await self._send("GET", path, None, attempts)

    async def post(self, path: str, body: Mapping[str, Any], attempts: int | None = None) -> Reply:
        """The server's JSON object; RequestFailed after all attempts, or at once where the request is refused."""
        return await self._send("POST", path, body, attempts)

    async def complete(
        self, model: str, prompt: str, *, kind: str, max_tokens: int, stop: Sequence[str] = (), seed: int | None = None
    ) -> Completion:
        """One greedy completion (``kind`` is completion or chat). RequestFailed, or WrongModel."""
        body: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "temperature": 0.0}
        if stop:
            body["stop"] = list(stop)
        if seed is not None:
            body["seed"] = seed
        if kind == "chat":
            reply = await self.post("/v1/chat/completions", {**body, "messages": messages(prompt)})
        else:
            reply = await self.post("/v1/completions", {**body, "prompt": prompt})
        return completion(reply, model, kind)

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None, attempts: int | None) -> Reply:
        start, most = time.monotonic(), attempts or self.limits.attempts
        for attempt in range(1, most + 1):
            async with self._gate:
                value, reason, wait, kind = await self._once(method, path, body)
            if value is not None:
                return Reply(value, attempt, time.monotonic() - start)
            if kind != "refused":
                self.disturbances += 1
            if kind == "refused" or attempt == most:
                times = f" ({attempt} attempts)" if attempt > 1 else ""
                raise RequestFailed(
                    sentence=f"{path}: {reason}{times}",
                    attempts=attempt,
                    seconds=time.monotonic() - start,
                    refused=kind == "refused",
                    disconnected=kind == "dropped",
                )
            pause = min(self.limits.longest_pause, self.limits.pause * 2 ** (attempt - 1))
            await asyncio.sleep(max(wait, pause * (0.5 + 0.5 * self._random.random())))
        raise AssertionError("unreachable")

    async def _once(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> tuple[dict[str, Any] | None, str, float, str]:
        """(object or None, reason, seconds the server asks to wait, kind of failure)."""
        try:
            response = await self._http.request(method, path, json=body)
        except self._errors as error:
            return None, f"{_plain(error)}", 0.0, "dropped"
        if response.status_code != 200:
            reason = f"HTTP {response.status_code}: {_short(response.text)}"
            retried = response.status_code in RETRIED
            return None, reason, self._wait(response.headers.get("retry-after")), "busy" if retried else "refused"
        try:
            value = json.loads(response.content)
        except ValueError:
            return None, "the answer is no whole JSON", 0.0, "cut"
        if not isinstance(value, (dict, list)):
            return None, "the answer is no JSON object", 0.0, "cut"
        return (value if isinstance(value, dict) else {"list": value}), "", 0.0, ""

    def _wait(self, header: str | None) -> float:
        try:
            return min(float(header or 0), self.limits.longest_pause)
        except ValueError:
            return 0.0


def base_url(server: str) -> str:
    """``http://host:port``, also from ``host:port``; a trailing ``/v1`` is dropped. EvalError for no address."""
    url = server.rstrip("/").removesuffix("/v1")
    if re.fullmatch(r"[\w.-]+:\d+", url):
        url = f"http://{url}"
    if not url.startswith(("http://", "https://")):
        raise EvalError(f"{server!r} is no server address; an address is host:port, or begins with http:// or https://")
    return url


def check_model(asked: str, answered: Any) -> None:
    """WrongModel unless the server names the model that was asked; ``NAME@revision`` is the same model."""
    if not isinstance(answered, str):
        raise WrongModel(f"the server does not say which model answers; asked was {asked!r}")
    if answered != asked and answered.partition("@")[0] != asked:
        raise WrongModel(f"the server answers for the model {answered!r}, and asked was {asked!r}")


def completion(reply: Reply, model: str, kind: str) -> Completion:
    """What a completion's JSON says. RequestFailed where there is no text: null is no empty answer."""
    check_model(model, reply.body.get("model"))
    choices = reply.body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    text = (message.get("content") if isinstance(message, dict) else None) if kind == "chat" else choice.get("text")
    if not isinstance(text, str):
        raise RequestFailed(
            sentence="the completion has no text (null)",
            attempts=reply.attempts,
            seconds=reply.seconds,
            refused=False,
            disconnected=False,
        )
    finish = choice.get("finish_reason")
    if finish in ("abort", "error"):
        raise RequestFailed(
            sentence=f"the server ended with {finish!r}",
            attempts=reply.attempts,
            seconds=reply.seconds,
            refused=False,
            disconnected=False,
        )
    usage = reply.body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    ids = choice.get("token_ids")
    return Completion(
        text=text,
        finish=finish if isinstance(finish, str) else None,
        tokens=tuple(ids) if isinstance(ids, list) else None,
        prompt_length=_count(usage.get("prompt_tokens")),
        length=_count(usage.get("completion_tokens")),
        attempts=reply.attempts,
        seconds=reply.seconds,
    )


def _count(value: Any) -> int | None:
    return value if type(value) is int else None


def _plain(error: Exception) -> str:
    return f"{type(error).__name__}: {_short(str(error))}" if str(error) else type(error).__name__


def _short(text: str) -> str:
    return " ".join(text.split())[:200]
