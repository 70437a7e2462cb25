"""The client: every fault is retried, or becomes an error with its reason; nothing becomes an answer by accident."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from evals.errors import EvalError
from evals.gsm8k import probe
from evals.gsm8k.client import Client, Completion, Limits, RequestFailed, WrongModel, base_url
from tests.support.eval_server import Server, Settings, canned, logprob, pieces, token_id

pytest.importorskip("httpx", reason="the client asks by httpx, which is not installed")

# Nothing here waits for this time limit; it ends a test that would hang.
QUICK = Limits(concurrency=4, timeout=120.0, attempts=3, pause=0.01)


def with_server(settings: Settings, work: Callable[[Client, Server], Awaitable[Any]], limits: Limits = QUICK) -> Any:
    async def run() -> Any:
        async with Server(settings) as server, Client(server.url, limits) as client:
            return await work(client, server)

    return asyncio.run(run())


def ask(client: Client, prompt: str = "p", kind: str = "completion") -> Awaitable[Completion]:
    return client.complete("tiny", prompt, kind=kind, max_tokens=8)


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_an_answer_keeps_finish_usage_and_attempts(kind: str) -> None:
    async def work(client: Client, server: Server) -> None:
        done = await ask(client, "what?", kind)
        assert (done.text, done.finish, done.attempts) == (canned("what?"), "stop", 1)
        assert done.length == len(pieces(canned("what?")))
        assert done.prompt_length == 1

    with_server(Settings(), work)


@pytest.mark.parametrize("fault", ["500", "503", "429", "cut", "drop"])
def test_a_passing_fault_costs_one_attempt(fault: str) -> None:
    async def work(client: Client, server: Server) -> None:
        assert (await ask(client)).attempts == 2
        assert client.disturbances == 1

    with_server(Settings(faults={fault: 1}, first=1), work)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("500", "HTTP 500"),
        ("429", "HTTP 429"),
        ("cut", "no whole JSON"),
        ("drop", "RemoteProtocol|ReadError"),
        ("hang", "ReadTimeout"),
    ],
)
def test_a_lasting_fault_is_an_error_with_its_reason(fault: str, words: str) -> None:
    async def work(client: Client, server: Server) -> None:
        with pytest.raises(RequestFailed, match=words) as caught:
            await ask(client)
        assert caught.value.attempts == 2
        assert server.count == 2

    timeout = 0.2 if fault == "hang" else QUICK.timeout
    with_server(Settings(faults={fault: 1}), work, Limits(concurrency=2, timeout=timeout, attempts=2, pause=0.01))


def test_a_refused_request_is_not_repeated() -> None:
    async def work(client: Client, server: Server) -> None:
        with pytest.raises(RequestFailed, match="HTTP 400") as caught:
            await ask(client)
        assert caught.value.refused
        assert server.count == 1

    with_server(Settings(faults={"400": 1}), work)


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_null_is_no_empty_answer(kind: str) -> None:
    async def work(client: Client, server: Server) -> None:
        with pytest.raises(RequestFailed, match="null"):
            await ask(client, kind=kind)

    with_server(Settings(faults={"null": 1}), work)


def test_another_model_is_noticed() -> None:
    async def work(client: Client, server: Server) -> None:
        with pytest.raises(WrongModel, match="'another', and asked was 'tiny'"):
            await ask(client)

    with_server(Settings(faults={"wrong-model": 1}), work)


def test_concurrency_is_bounded_and_connections_are_kept() -> None:
    async def work(client: Client, server: Server) -> None:
        await asyncio.gather(*(ask(client, f"p{i}") for i in range(100)))
        assert server.connections <= QUICK.concurrency

    with_server(Settings(), work)


@pytest.mark.parametrize(
    ("flavour", "method"),
    [("sglang", "sglang"), ("vllm", "prompt_logprobs"), ("echo", "echo"), ("mute", None)],
)
def test_the_probe_finds_how_prompts_are_scored(flavour: str, method: str | None) -> None:
    async def work(client: Client, server: Server) -> None:
        assert await probe.find_method(client, "tiny") == method
        if method is None:
            return
        score = await probe.score(client, "tiny", method, "q", "Question: a b\nAnswer:", " one two\n#### 3")
        words = [" one", " two", "\n####", " 3"]
        assert score.tokens == tuple(probe.digest(w) if method == "echo" else token_id(w) for w in words)
        assert score.top1 == score.tokens
        assert score.logprob[0] == logprob("Question: a b\nAnswer:", " one")

    with_server(Settings(flavour=flavour), work)


def test_the_model_list_may_fail_and_the_fingerprint_keeps_no_secret() -> None:
    async def mute(client: Client, server: Server) -> None:
        with pytest.raises(EvalError, match="--model"):
            await probe.served_model(client, None)
        assert await probe.served_model(client, "tiny") == "tiny"
        assert (await ask(client)).text == canned("p")  # named tiny@main

    async def sglang(client: Client, server: Server) -> None:
        words = await probe.fingerprint(client, "tiny")
        assert words["server_info"] == {"version": "1.0", "api_key": "(withheld)"}
        with pytest.raises(EvalError, match="serves 'tiny' and not 'large'"):
            await probe.served_model(client, "large")

    with_server(Settings(flavour="mute"), mute)
    with_server(Settings(flavour="sglang"), sglang)
    assert probe.stable("x --api-key abc --tp 8") == "x --api-key (withheld) --tp 8"


def test_addresses() -> None:
    assert base_url("http://h:1/v1/") == base_url("h:1") == "http://h:1"
    with pytest.raises(EvalError, match="no server address"):
        base_url("h")
