"""When a wait asks again, and when it ends."""

import pytest
from openai import APIConnectionError, NotFoundError
from openai.types import Batch

from xalen import StillRunning
from xalen.batch import outage, watch
from xalen.batch.watch import Watch

BATCH = Batch.construct(id="batch_1", status="in_progress")
AWAY = APIConnectionError(request=None)  # type: ignore[arg-type]


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(watch.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(outage.random, "uniform", lambda _, most: most)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_pauses_grow_to_five_seconds(clock: Clock) -> None:
    one = Watch("batch_1", {})
    pauses = [one.pause() for _ in range(60)]
    assert pauses[0] == 0.2
    assert pauses == sorted(pauses)
    assert pauses[-1] == 5.0


def test_an_interval_of_the_callers_stays(clock: Clock) -> None:
    one = Watch("batch_1", {"poll_interval": 30})
    assert [one.pause(), one.pause()] == [30, 30]


def test_a_wait_has_an_end_and_says_that_the_batch_has_none(clock: Clock) -> None:
    one = Watch("batch_1", {"max_wait_seconds": 60, "poll_interval": 10})
    clock.now += 45
    one.pause()
    clock.now += 10
    with (
        pytest.raises(StillRunning, match="batch_1 has not ended after 60 s") as caught,
        one.telling(),
    ):
        one.pause()
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.batch_id == "batch_1"
    assert caught.value.__notes__ == [
        "The batch goes on: client.batches.wait('batch_1') waits for it again."
    ]


def test_a_server_may_be_away_for_a_quarter_of_an_hour(clock: Clock) -> None:
    one = Watch("batch_1", {})
    pauses = []
    for _ in range(12):
        pauses.append(one.pause_after(AWAY))
        clock.now += 70
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30, 30]
    # It answers, so the time begins anew.
    one.has_ended(BATCH)
    assert one.pause_after(AWAY) == 0.5
    clock.now += 901
    with pytest.raises(APIConnectionError):
        one.pause_after(AWAY)


def test_ctrl_c_says_that_the_batch_goes_on() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, Watch("batch_1", {}).telling():
        raise KeyboardInterrupt
    assert "The batch goes on" in caught.value.__notes__[0]


def test_a_batch_that_does_not_exist_does_not_go_on() -> None:
    missing = NotFoundError.__new__(NotFoundError)
    with pytest.raises(NotFoundError) as caught, Watch("batch_1", {}).telling():
        raise missing
    assert not hasattr(caught.value, "__notes__")


def test_a_stream_is_opened_again_if_it_told_something_and_lasted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    for reports, seconds, again in ((0, 25, False), (1, 1, False), (1, 6, True)):
        waiting = watch.Watch("batch_1", {"progress": False})
        assert waiting.begins_stream()
        for _ in range(reports):
            waiting.has_ended(Batch.model_construct(status="in_progress"))
        now[0] += seconds
        waiting.stream_is_over()
        assert waiting.begins_stream() is again
