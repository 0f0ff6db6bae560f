"""Back-pressure: answers are read as fast as they are recorded, each backend has its own bytes, and
at least one answer always progresses.
"""

import asyncio

import pytest

from xalen_batch.backends import buffer as buffers
from xalen_batch.backends.buffer import Buffer, Buffers

READ_BYTES = 10


@pytest.fixture(autouse=True)
def _short_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "READ_BYTES", READ_BYTES)


class Answer:
    def __init__(self) -> None:
        self.is_paused = False

    def pause(self) -> None:
        assert not self.is_paused
        self.is_paused = True

    def resume(self) -> None:
        assert self.is_paused
        self.is_paused = False


def reading(answers: list[Answer]) -> list[int]:
    """The indexes of the answers that are not paused."""
    return [number for number, answer in enumerate(answers) if not answer.is_paused]


def test_answers_that_fit_are_all_read() -> None:
    buffer, answers = Buffer(100), [Answer() for _ in range(3)]
    for answer in answers:
        buffer.arrived(answer, 33)
    assert reading(answers) == [0, 1, 2]
    assert not buffer.is_full


def test_of_half_answers_that_fill_it_the_oldest_goes_on_and_then_the_next() -> None:
    async def main() -> None:
        buffer, answers = Buffer(90), [Answer() for _ in range(3)]
        for answer in answers:
            buffer.arrived(answer, 30)
        assert reading(answers) == [0]
        buffer.arrived(answers[0], 50)
        assert reading(answers) == [0]
        # The answer is complete. The next one waits until it is recorded, so that only one answer
        # exceeds the bound.
        buffer.ended(answers[0])
        buffer.answered(80)
        await asyncio.sleep(0)
        assert reading(answers[1:]) == []
        buffer.recorded(80)
        assert reading(answers[1:]) == [0, 1]
        buffer.arrived(answers[1], 30)
        assert reading(answers[1:]) == [0]

    asyncio.run(main())


def test_an_answer_that_is_given_up_makes_room() -> None:
    async def main() -> None:
        buffer, answers = Buffer(90), [Answer() for _ in range(3)]
        for answer in answers:
            buffer.arrived(answer, 30)
        buffer.ended(answers[0])
        await asyncio.sleep(0)
        assert reading(answers[1:]) == [0, 1]
        assert buffer.held == 60

    asyncio.run(main())


def test_its_room_is_given_to_as_many_as_may_fill_it() -> None:
    buffer, answers = Buffer(10 * READ_BYTES), [Answer() for _ in range(10)]
    buffer.answered(8 * READ_BYTES)
    for answer in answers:
        buffer.arrived(answer, 2)
    assert reading(answers) == []
    buffer.recorded(READ_BYTES + 5)
    assert reading(answers) == [0, 1]


def test_a_connection_leaves_as_one_that_is_read() -> None:
    """The connection may carry the answer to the next request."""

    async def main() -> None:
        buffer, answer = Buffer(10), Answer()
        buffer.answered(10)
        buffer.arrived(answer, 5)
        assert answer.is_paused
        buffer.ended(answer)
        assert not answer.is_paused

    asyncio.run(main())


def test_backends_share_alike_and_one_that_is_full_stops_no_other() -> None:
    shared = Buffers(120)
    first = shared.add()
    assert first.most == 120
    second, answers = shared.add(), [Answer(), Answer()]
    assert (first.most, second.most) == (60, 60)
    first.answered(1)
    first.arrived(answers[0], 100)
    second.arrived(answers[1], 50)
    assert reading(answers) == [1]


@pytest.mark.parametrize("size", [1, 70, 200])
def test_every_answer_ends_whatever_their_sizes_and_the_bytes_stay_bounded(size: int) -> None:
    """Fifty at once, recorded after each round of reads."""

    async def main() -> None:
        buffer, most = Buffer(100), 0
        arriving = {Answer(): size for _ in range(50)}
        unrecorded = 0
        while arriving or unrecorded:
            for answer, left in list(arriving.items()):
                if answer.is_paused:
                    continue
                count = min(READ_BYTES, left)
                buffer.arrived(answer, count)
                arriving[answer] -= count
                if not arriving[answer]:
                    del arriving[answer]
                    buffer.ended(answer)
                    buffer.answered(size)
                    unrecorded += size
                await asyncio.sleep(0)
                most = max(most, buffer.held)
            buffer.recorded(unrecorded)
            unrecorded = 0
        assert buffer.held == 0
        # Each answer may be read once before it is paused, and one is read to its end.
        assert most <= 100 + 50 * READ_BYTES + size

    asyncio.run(asyncio.wait_for(main(), 10))
