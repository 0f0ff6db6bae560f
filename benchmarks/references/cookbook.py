"""The shape of the OpenAI cookbook's `api_request_parallel_processor.py`, which many pipelines
started from.

Mirrored: one main loop that takes the next request, keeps account of requests and tokens a minute,
starts a task for it and then sleeps 1 ms; one aiohttp session for each request; a queue of retries;
the file opened anew for each result. Left out, in its favour: counting tokens (here a length is
divided by four), and logging. The limits are set so that they never bind.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.references.script import Work, main

REQUESTS_PER_MINUTE = 100_000_000.0
TOKENS_PER_MINUTE = 100_000_000_000.0
PAUSE = 0.001
ATTEMPTS = 5


@dataclass
class _Progress:
    in_progress: int = 0
    succeeded: int = 0
    failed: int = 0


@dataclass
class _Request:
    number: int
    body: dict[str, Any]
    tokens: int
    attempts_left: int = ATTEMPTS
    errors: list[str] = field(default_factory=list)

    async def call(
        self, url: str, retries: "asyncio.Queue[_Request]", out: Path, progress: _Progress
    ) -> None:
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.post(url, json=self.body) as response,
            ):
                answer = await response.json()
            if "error" in answer:
                raise ValueError(answer["error"])
        except (aiohttp.ClientError, ValueError) as error:
            self.errors.append(str(error))
            if self.attempts_left:
                retries.put_nowait(self)
            else:
                progress.failed += 1
                progress.in_progress -= 1
            return
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps([self.body, answer]) + "\n")
        progress.succeeded += 1
        progress.in_progress -= 1


async def _run(work: Work) -> int:
    retries: asyncio.Queue[_Request] = asyncio.Queue()
    progress = _Progress()
    waiting = (
        _Request(n, body, len(work.bodies[n]) // 4) for n, body in enumerate(work.requests())
    )
    requests, tokens, last = REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE, time.time()
    next_request: _Request | None = None
    is_over = False
    tasks = set()
    while True:
        if next_request is None:
            if not retries.empty():
                next_request = retries.get_nowait()
            elif not is_over:
                next_request = next(waiting, None)
                is_over = next_request is None
                progress.in_progress += not is_over
        now = time.time()
        requests = min(requests + REQUESTS_PER_MINUTE * (now - last) / 60, REQUESTS_PER_MINUTE)
        tokens = min(tokens + TOKENS_PER_MINUTE * (now - last) / 60, TOKENS_PER_MINUTE)
        last = now
        if next_request is not None and requests >= 1 and tokens >= next_request.tokens:
            requests -= 1
            tokens -= next_request.tokens
            next_request.attempts_left -= 1
            task = asyncio.create_task(next_request.call(work.url, retries, work.out, progress))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            next_request = None
        if is_over and progress.in_progress == 0:
            return progress.succeeded
        await asyncio.sleep(PAUSE)


if __name__ == "__main__":
    main(lambda work: asyncio.run(_run(work)))
