"""A server for tests: OpenAI's, vLLM's and SGLang's routes over a deterministic answerer, with faults on order.

HTTP/1.1 with kept connections on asyncio alone. ``python -m tests.support.eval_server --port 0 --fault 503:7`` prints
its port. Answers depend on the prompt and the salt alone, so that a restarted server says the same.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FAULTS = ("500", "503", "429", "400", "cut", "drop", "null", "delay", "wrong-model", "hang")
ASKING = ("/v1/completions", "/v1/chat/completions", "/generate")
FLAVOURS = ("vllm", "sglang", "echo", "mute")


def run_words(url: str, data: Path, out: Path, concurrency: int) -> list[str]:
    """The words of ``evals gsm8k run`` on a server, with the arm's name ``a``."""
    where = ["--server", url, "--name", "a", "--out", str(out), "--data", str(data), "--any-data"]
    return ["gsm8k", "run", *where, "--profile", "plain", "--concurrency", str(concurrency)]


def canned(prompt: str, salt: str = "") -> str:
    """A worked answer that depends on the prompt alone."""
    number = int(hashlib.sha256((salt + prompt).encode()).hexdigest()[:6], 16) % 100
    return f" It takes {number} steps.\n#### {number}"


def pieces(text: str) -> list[str]:
    """Tokens: words with the space before them."""
    return re.findall(r"\s*\S+", text)


def token_id(piece: str) -> int:
    return int(hashlib.sha256(piece.encode()).hexdigest()[:4], 16)


def logprob(before: str, piece: str) -> float:
    """Of a token after the text before it; deterministic, between -2.01 and -0.01."""
    return -0.01 - int(hashlib.sha256(f"{before[-40:]}|{piece}".encode()).hexdigest()[:4], 16) / 32768.0


@dataclass
class Settings:
    """flavour: which server it plays: vllm (prompt_logprobs), sglang (/generate), echo, or mute: like transformers
    serve offline, no log-probabilities and a failing model list. faults: kind -> on every n-th asking request; first:
    only among the first so many."""

    model: str = "tiny"
    flavour: str = "vllm"
    salt: str = ""
    version: str = "1.0"
    faults: dict[str, int] = field(default_factory=dict)
    first: int = sys.maxsize
    delay: float = 0.0
    answerer: Callable[[str], str] | None = None


class Server:
    """asked: how often each prompt was asked by a completion; connections: how many were opened."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.count = 0
        self.asked: Counter[str] = Counter()
        self.connections = 0
        self.url = ""
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self, port: int = 0) -> Server:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def stop(self) -> None:
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()

    async def __aenter__(self) -> Server:
        return await self.start()

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, path, _ = head.split(" ", 2)
        length = re.search(r"(?i)content-length: *(\d+)", head)
        raw = await reader.readexactly(int(length[1])) if length else b""
        fault = self._fault() if path in ASKING else ""
        if self.settings.delay:
            await asyncio.sleep(self.settings.delay)
        if fault == "drop":
            writer.transport.abort()
            return False
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "delay":
            await asyncio.sleep(0.2)
        if fault.isdigit():
            status, value = int(fault), {"error": {"message": f"made to fail with {fault}"}}
        else:
            status, value = self._answer(method, path, json.loads(raw) if raw else {}, fault)
        body = json.dumps(value).encode()
        if fault == "cut":
            body = body[: len(body) // 2]
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        return True

    def _fault(self) -> str:
        self.count += 1
        if self.count > self.settings.first:
            return ""
        return next((kind for kind, every in self.settings.faults.items() if self.count % every == 0), "")

    def _answer(self, method: str, path: str, body: dict[str, Any], fault: str) -> tuple[int, Any]:
        s = self.settings
        missing = 404, {"detail": "Not Found"}
        if path == "/v1/models":
            if s.flavour == "mute":
                return 500, {"detail": "offline"}
            return 200, {"object": "list", "data": [{"id": s.model, "created": 1}]}
        if path == "/version":
            return (200, {"version": s.version}) if s.flavour == "vllm" else missing
        if path in ("/server_info", "/get_model_info", "/model_info"):
            about = {"version": s.version, "startup_time": 7, "api_key": "hush"}
            return (200, about) if s.flavour == "sglang" else missing
        if path == "/generate":
            return (200, self._generate(body)) if s.flavour == "sglang" else missing
        if path not in ASKING:
            return missing
        chat = path.endswith("chat/completions")
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        self.asked[prompt] += 1
        text: str | None = s.answerer(prompt) if s.answerer else canned(prompt, s.salt)
        if fault == "null":
            text = None
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        if not chat and "prompt_logprobs" in body and s.flavour == "vllm":
            choice |= self._prompt_logprobs(prompt)
        if not chat and body.get("echo") and s.flavour in ("echo", "vllm"):
            choice |= self._echo(prompt, text or "")
        model = "another" if fault == "wrong-model" else s.model + ("@main" if s.flavour == "mute" else "")
        tokens = len(pieces(prompt)), len(pieces(text or ""))
        return 200, {
            "id": "x",
            "model": model,
            "choices": [choice],
            "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]},
        }

    def _rows(self, text: str) -> list[tuple[float | None, str]]:
        rows: list[tuple[float | None, str]] = []
        before = ""
        for piece in pieces(text):
            rows.append((logprob(before, piece) if before else None, piece))
            before += piece
        return rows

    def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
        rows = self._rows(body["text"])
        return {
            "text": "",
            "meta_info": {
                "prompt_tokens": len(rows),
                "input_token_logprobs": [[lp, token_id(p), None] for lp, p in rows],
                "input_top_logprobs": [None if lp is None else [[lp, token_id(p), None]] for lp, p in rows],
            },
        }

    def _prompt_logprobs(self, text: str) -> dict[str, Any]:
        rows = self._rows(text)
        return {
            "prompt_token_ids": [token_id(p) for _, p in rows],
            "prompt_logprobs": [
                None if lp is None else {str(token_id(p)): {"logprob": lp, "rank": 1, "decoded_token": p}}
                for lp, p in rows
            ],
        }

    def _echo(self, prompt: str, text: str) -> dict[str, Any]:
        rows = self._rows(prompt + text)
        places, at = [], 0
        for _, piece in rows:
            places.append(at)
            at += len(piece)
        return {
            "logprobs": {
                "tokens": [p for _, p in rows],
                "token_logprobs": [lp for lp, _ in rows],
                "text_offset": places,
                "top_logprobs": [None if lp is None else {p: lp} for lp, p in rows],
            }
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--flavour", choices=FLAVOURS, default="vllm")
    parser.add_argument("--salt", default="")
    parser.add_argument("--version", default="1.0")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--fault", action="append", default=[], metavar="KIND:EVERY")
    parser.add_argument("--first", type=int, default=sys.maxsize, help="faults among the first so many requests only")
    options = parser.parse_args()
    faults = {kind: int(every) for kind, _, every in (f.partition(":") for f in options.fault)}

    async def serve() -> None:
        server = await Server(
            Settings(
                options.model, options.flavour, options.salt, options.version, faults, options.first, options.delay
            )
        ).start(options.port)
        print(server.port, flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
