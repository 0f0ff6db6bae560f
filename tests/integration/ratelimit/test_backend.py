"""Rate limits over a real Valkey: several processes together, and a server that goes and comes
back.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.conftest import Stores
from tests.waiting import PATIENCE
from xalen_batch.ratelimit.backend import RETRY, Rates
from xalen_batch.ratelimit.buckets import HOLD, RateLimit
from xalen_batch.standalone import stores

pytestmark = pytest.mark.timing

PER_MINUTE = 6_000
RATE = RateLimit(PER_MINUTE).rate
# A process with more requests than its limit allows; it prints the time of each one that it sends.
PROCESS = f"""
import asyncio, time
import uvloop
from xalen_batch.ratelimit.backend import Rates

async def main():
    rates = Rates("shared", requests_per_minute={PER_MINUTE}, tokens_per_minute=None, workers=lambda: 2)
    async def one():
        while True:
            await rates.admit(1)
            print(time.monotonic(), flush=True)
    await asyncio.wait([asyncio.create_task(one()) for _ in range(50)], timeout=2)

print("ready", flush=True)
input()
uvloop.run(main())
"""


def test_processes_together_stay_within_the_limit(stores: Stores, valkey: redis.Redis) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    sent = [[float(word) for word in output] for output in outputs]
    together = sorted(at for each in sent for at in each)
    elapsed = together[-1] - together[0]
    assert all(len(each) > 10 for each in sent)
    # A test on virtual time checks that they use the whole limit: here it would measure the
    # machine's speed.
    assert len(together) <= RATE * (elapsed + HOLD) + 2


@pytest.fixture
def server(tmp_path: Path, configure: Callable[..., None]) -> Iterator[stores.Valkey]:
    server = stores.Valkey(tmp_path / "valkey", tmp_path / "valkey.log")
    configure(redis_url=server.start())
    yield server
    server.stop()


def test_a_server_that_goes_leaves_each_its_share_and_is_used_again_when_it_is_back(
    server: stores.Valkey,
) -> None:
    async def main() -> None:
        sent: list[float] = []

        async def one(rates: Rates) -> None:
            while True:
                await rates.admit(1)
                sent.append(time.monotonic())

        async def until(holds: Callable[[], bool]) -> None:
            async with asyncio.timeout(PATIENCE):
                while not holds():
                    await asyncio.sleep(0.01)

        async def count(requests: int) -> float:
            """Seconds until this number of further requests was sent."""
            start, before = time.monotonic(), len(sent)
            await until(lambda: len(sent) >= before + requests)
            return time.monotonic() - start

        both = [
            Rates(
                "model", requests_per_minute=PER_MINUTE, tokens_per_minute=None, workers=lambda: 2
            )
            for _ in range(2)
        ]
        senders = [asyncio.create_task(one(rates)) for rates in both for _ in range(20)]
        await until(lambda: len(sent) > 0)
        assert await count(50) >= 50 / RATE * 0.7
        await asyncio.to_thread(server.stop)
        await until(lambda: all(rates._local for rates in both))
        assert await count(100) >= 100 / RATE * 0.8
        start, before = time.monotonic(), len(sent)
        await asyncio.to_thread(server.start)
        await until(lambda: not any(rates._local for rates in both))
        await count(100)
        # Requests sent while one process used Redis again and the other did not yet.
        assert len(sent) - before <= RATE * (time.monotonic() - start + RETRY + 1 + HOLD) + 2
        for sender in senders:
            sender.cancel()
        await asyncio.gather(*senders, return_exceptions=True)
        for rates in both:
            await rates.close()

    asyncio.run(main())


def test_a_server_that_does_not_answer_is_not_waited_for(server: stores.Valkey) -> None:
    async def main() -> None:
        rates = Rates(
            "model", requests_per_minute=PER_MINUTE, tokens_per_minute=None, workers=lambda: 2
        )
        await rates.admit(1)
        await asyncio.sleep(2 * HOLD)
        with redis.Redis.from_url(server.url) as client:
            client.execute_command("CLIENT", "PAUSE", 60_000, "ALL")
        start = time.monotonic()
        await rates.admit(1)
        # The server is silent for a minute.
        assert time.monotonic() - start < 30
        assert rates._local is not None
        await rates.close()

    asyncio.run(main())


def test_tokens_that_were_not_used_reach_the_other_processes(server: stores.Valkey) -> None:
    async def main() -> None:
        one, other = (
            Rates("model", requests_per_minute=None, tokens_per_minute=60_000, workers=lambda: 2)
            for _ in range(2)
        )
        await one.admit(50_000)
        one.settle(50_000, 100)
        # Before the end of the minute for which the whole estimate would have blocked it.
        await asyncio.wait_for(other.admit(500), 30)
        for rates in (one, other):
            await rates.close()
        with redis.Redis.from_url(server.url) as client:
            assert client.keys() == [b"xalen:rates:model"]
            assert 0 < client.ttl("xalen:rates:model") < 120

    asyncio.run(main())
