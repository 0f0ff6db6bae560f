"""An open-loop client of live calls, a process of its own: `python -m benchmarks.live_calls`.

Calls start at random times (a Poisson process) whether or not earlier ones are answered.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from statistics import median, quantiles
from threading import Event

import uvloop

from benchmarks.environments import ROOT
from benchmarks.lines import CHAT_MODEL
from xalen_batch.backends.buffer import Buffer
from xalen_batch.backends.clients.contract import Limits
from xalen_batch.backends.clients.plain import PlainClient

LIMITS = Limits(request_timeout=60, connect_timeout=10, answer_bytes=8 << 20)
PROMPT_BYTES = 800


@dataclass(frozen=True)
class Answers:
    """Seconds of the calls that were answered 200, and the number of the others by status."""

    seconds: list[float]
    failed: dict[str, int]

    @property
    def median_ms(self) -> float:
        return median(self.seconds) * 1e3

    @property
    def p95_ms(self) -> float:
        return quantiles(self.seconds, n=20)[-1] * 1e3


def call(url: str, key: str, rate: float, seconds: float, *, until: Event | None = None) -> Answers:
    """Make `rate` calls a second to `url` (ends in /v1), for `seconds` or until an event."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.live_calls", url, key, str(rate), str(seconds)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        if until is not None:
            until.wait(seconds)
            process.stdin.close()
        return Answers(**json.loads(process.stdout.read()))
    finally:
        process.kill()
        process.communicate()


async def _run(url: str, key: str, rate: float, seconds: float) -> Answers:
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    client = PlainClient(url, headers, LIMITS, Buffer())
    message = {"role": "user", "content": ("where is my parcel? " * 50)[:PROMPT_BYTES]}
    body = json.dumps({"model": CHAT_MODEL, "messages": [message]}).encode()
    answers, draw = Answers([], {}), random.Random(1)

    async def one() -> None:
        started = time.perf_counter()
        reply = await client.post("/chat/completions", body, "req_1")
        if reply.status == 200:
            answers.seconds.append(time.perf_counter() - started)
        else:
            answers.failed[str(reply.status)] = answers.failed.get(str(reply.status), 0) + 1

    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    # The caller closes it to end early.
    loop.add_reader(sys.stdin, over.set)
    at = loop.time()
    end = at + seconds
    calls = set()
    while at < end and not over.is_set():
        await asyncio.sleep(at - loop.time())
        calls.add(asyncio.create_task(one()))
        at += draw.expovariate(rate)
    await asyncio.gather(*calls)
    await client.close()
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("key")
    parser.add_argument("rate", type=float)
    parser.add_argument("seconds", type=float)
    given = parser.parse_args()
    answers = uvloop.run(_run(given.url, given.key, given.rate, given.seconds))
    sys.stdout.write(json.dumps(vars(answers)) + "\n")


if __name__ == "__main__":
    main()
