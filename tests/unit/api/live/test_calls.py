"""A call whose client goes is given up; one that is answered is not."""

import asyncio

import pytest

from xalen_batch.api.live.calls import ClientGone, unless


def test_an_answer_ends_the_wait_for_the_client() -> None:
    async def scenario() -> None:
        gone = asyncio.get_running_loop().create_future()
        assert await unless(lambda: gone, asyncio.sleep(0.001, "answer")) == "answer"
        assert gone.cancelled()

    asyncio.run(scenario())


def test_a_client_that_goes_has_its_call_cancelled() -> None:
    async def scenario() -> None:
        gone = asyncio.get_running_loop().create_future()
        is_cut = asyncio.Event()

        async def answer() -> None:
            try:
                gone.set_result(None)
                await asyncio.Event().wait()
            finally:
                is_cut.set()

        with pytest.raises(ClientGone):
            await unless(lambda: gone, answer())
        assert is_cut.is_set()
        # The task goes on.
        await asyncio.sleep(0)

    asyncio.run(scenario())


def test_a_client_that_goes_with_the_answer_leaves_the_task_running() -> None:
    async def scenario() -> None:
        gone, answer = (asyncio.get_running_loop().create_future() for _ in range(2))

        async def run() -> str:
            found: str = await unless(lambda: gone, answer)
            for _ in range(3):
                await asyncio.sleep(0)
            return found

        running = asyncio.create_task(run())
        await asyncio.sleep(0)
        answer.set_result("answer")
        gone.set_result(None)
        assert await running == "answer"

    asyncio.run(scenario())


def test_a_server_that_stops_is_no_client_that_goes() -> None:
    async def scenario() -> None:
        gone = asyncio.get_running_loop().create_future()
        running = asyncio.create_task(unless(lambda: gone, asyncio.Event().wait()))
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(scenario())
