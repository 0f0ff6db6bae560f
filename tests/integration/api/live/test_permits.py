"""The permits of a backend: live calls and batches together never exceed them, live calls first."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from xalen_batch import ids
from xalen_batch.api.live import permits as live_permits
from xalen_batch.api.live.permits import LivePermits
from xalen_batch.errors import TooManyRequests
from xalen_batch.ratelimit.permits import Held, Share, SharedPermits

pytestmark = pytest.mark.usefixtures("valkey")
MOST = 8


def run(scenario: Callable[[str], Awaitable[None]]) -> None:
    """Run a scenario with the name of a backend that no other test has."""
    asyncio.run(asyncio.wait_for(scenario(ids.new().hex), 60))


async def until(happened: Callable[[], bool]) -> None:
    while not happened():
        await asyncio.sleep(0.005)


def test_without_live_calls_a_worker_keeps_its_share() -> None:
    async def scenario(name: str) -> None:
        worker = SharedPermits("w", name, MOST, 0)
        assert await worker.hold_batch(used=3, share=8) == Share(8, is_bounded=False)
        await worker.close()

    run(scenario)


def test_a_reserve_is_never_given_to_a_batch() -> None:
    async def scenario(name: str) -> None:
        worker, api = SharedPermits("w", name, MOST, 3), SharedPermits("a", name, MOST, 3)
        assert await worker.hold_batch(used=0, share=8) == Share(5, is_bounded=True)
        assert (await api.hold_live(3)).held == 3
        await worker.close()
        await api.close()

    run(scenario)


def test_workers_share_all_that_live_calls_leave_and_no_more() -> None:
    async def scenario(name: str) -> None:
        workers = [SharedPermits(f"w{number}", name, MOST, 1) for number in range(3)]
        # A newcomer has the one permit of every worker, until the others have given theirs up.
        first = [(await worker.hold_batch(used=0, share=8)).permits for worker in workers]
        assert first == [7, 1, 1]
        for _ in range(2):
            then = [(await worker.hold_batch(used=0, share=8)).permits for worker in workers]
            assert then == [3, 2, 2]
        for worker in workers:
            await worker.close()

    run(scenario)


def test_permits_that_are_given_back_are_not_used_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(name: str) -> None:
        live = LivePermits("m", name, MOST, 0)
        async with live.one(), live.one(), live.one():
            pass
        assert live._held >= 2
        real = live._shared.hold_live

        async def hold(wanted: int) -> Held:
            async with live.one():
                assert live._held == wanted == 1
                return await real(wanted)

        monkeypatch.setattr(live._shared, "hold_live", hold)
        await live._hold()
        await live.close()

    run(scenario)


def test_live_calls_get_what_workers_give_up_and_never_more() -> None:
    async def scenario(name: str) -> None:
        workers = [SharedPermits(f"w{number}", name, MOST, 0) for number in range(2)]
        api = SharedPermits("a", name, MOST, 0)
        for worker in workers:
            await worker.hold_batch(used=4, share=4)
        assert (await api.hold_live(4)).held == 0
        # Their lines in flight still count.
        for worker in workers:
            assert (await worker.hold_batch(used=4, share=4)).permits == 2
        assert (await api.hold_live(4)).held == 0
        for in_flight, held in ((3, 2), (2, 4), (1, 4)):
            for worker in workers:
                await worker.hold_batch(used=in_flight, share=4)
            assert (await api.hold_live(4)).held == held
        for each in (*workers, api):
            await each.close()

    run(scenario)


def test_a_call_waits_for_a_line_and_then_goes() -> None:
    async def scenario(name: str) -> None:
        worker, live = SharedPermits("w", name, MOST, 0), LivePermits("m", name, MOST, 0)
        await worker.hold_batch(used=8, share=8)
        gone = asyncio.Event()

        async def call() -> None:
            async with live.one():
                gone.set()

        calling = asyncio.create_task(call())
        await until(lambda: bool(live._waiting))
        share = await worker.hold_batch(used=8, share=8)
        while not share.is_bounded:
            share = await worker.hold_batch(used=8, share=8)
        assert not gone.is_set()
        await worker.hold_batch(used=share.permits, share=8)
        await calling
        await live.close()
        await worker.close()

    run(scenario)


def test_a_backend_full_of_live_calls_is_busy() -> None:
    async def scenario(name: str) -> None:
        live = LivePermits("m", name, 2, 0)
        async with live.one(), live.one():
            with pytest.raises(TooManyRequests, match="m is busy"):
                async with live.one():
                    pass
        # A permit that is free again is found without asking.
        async with live.one():
            pass
        await live.close()

    run(scenario)


def test_a_call_that_is_given_up_leaves_its_place() -> None:
    async def scenario(name: str) -> None:
        worker, live = SharedPermits("w", name, 1, 0), LivePermits("m", name, 1, 0)
        await worker.hold_batch(used=1, share=1)

        async def call() -> None:
            async with live.one():
                await asyncio.Event().wait()

        calling = asyncio.create_task(call())
        await until(lambda: bool(live._waiting))
        calling.cancel()
        with suppress(asyncio.CancelledError):
            await calling
        await worker.give_back()
        async with live.one():
            pass
        await live.close()
        await worker.close()

    run(scenario)


def test_without_redis_live_calls_have_the_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(name: str) -> None:
        live = LivePermits("m", name, MOST, 2)

        async def away(wanted: int) -> None:
            raise ConnectionError

        monkeypatch.setattr(live._shared, "hold_live", away)
        async with live.one(), live.one():
            with pytest.raises(TooManyRequests):
                async with live.one():
                    pass
        await live.close()

    run(scenario)


def test_unused_permits_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_permits, "RENEWAL", 0.01)
    monkeypatch.setattr(live_permits, "FORGOTTEN_AFTER", 0.1)

    async def scenario(name: str) -> None:
        live, other = LivePermits("m", name, MOST, 0), SharedPermits("other", name, MOST, 0)
        async with live.one(), live.one(), live.one(), live.one():
            assert (await other.hold_live(MOST)).possible < MOST
        await until(lambda: live._held == 0)
        while (await other.hold_live(MOST)).held < MOST:
            await asyncio.sleep(0.005)
        await live.close()
        await other.close()

    run(scenario)
