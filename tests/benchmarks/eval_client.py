"""How fast the runner asks, and whether its memory stays flat: 10,000 questions against the test server.

``python -m tests.benchmarks.eval_client --questions 10000``. Server and client are processes of their own, so the
memory is the client's alone. The floor of 200 requests per second is far above any model's pace: the client must never
be what limits a run. Exit code 1 where the floor or the memory bound is broken.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from evals.gsm8k import store
from tests.support.eval_server import run_words

ROOT = Path(__file__).resolve().parents[2]
FLOOR = 200.0
GROWTH_MIB = 32.0
"""From a tenth of the answers to the end. Keys of what is done take about 0.2 KiB each, 2 MiB for 10,000; keeping the
answers' replies (several KiB each with a long prompt) would take more than this."""


def resident_mib(pid: int) -> float:
    """0 where the process is gone or the system has no /proc."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def measure(questions: int, concurrency: int, folder: Path) -> tuple[float, float, float, float]:
    """(requests per second, MiB after a tenth, MiB at most afterwards, the client's seconds of CPU).

    Fails unless every question is there once.
    """
    data = folder / "test.jsonl"
    with data.open("w") as out:
        for i in range(questions):
            out.write(json.dumps({"question": f"How much is {i}?", "answer": f"It is.\n#### {i}"}) + "\n")
    serve = [sys.executable, "-m", "tests.support.eval_server"]
    server = subprocess.Popen(serve, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    run = folder / "run"
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        words = run_words(url, data, run, concurrency)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        child = subprocess.Popen([sys.executable, "-m", "evals", *words], cwd=ROOT, stdout=subprocess.DEVNULL)
        samples, early, most, first = run / "samples.jsonl", 0.0, 0.0, 0.0
        while child.poll() is None:
            time.sleep(0.05)
            size = samples.stat().st_size if samples.exists() else 0
            if size and not first:
                first = time.monotonic()
            # A line takes more than 250 bytes here.
            if size > 25 * questions:
                now = resident_mib(child.pid)
                early, most = early or now, max(most, now)
        seconds = time.monotonic() - first
        assert child.returncode == 0, child.returncode
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    assert len({s.question for s in store.read(run).samples}) == questions
    return questions / seconds, early, most, cpu


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rate, early, most, cpu = measure(options.questions, options.concurrency, Path(folder))
    print(
        f"{options.questions:,} questions: {rate:.0f} requests per second, {early:.0f} MiB after a tenth, "
        f"{most:.0f} MiB at most, {1000 * cpu / options.questions:.2f} ms of CPU a request"
    )
    return 0 if rate >= FLOOR and most - early <= GROWTH_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
