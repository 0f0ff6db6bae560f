"""A job with a bug logs the error, without text of a user."""

import threading
from typing import cast
from uuid import UUID

import pytest
from celery import Celery
from structlog.testing import capture_logs

from tests.waiting import PATIENCE
from xalen_batch import log
from xalen_batch.broker import Job
from xalen_batch.schedules import fire
from xalen_batch.webhooks.sender import Sender
from xalen_batch.worker.engine import Engine
from xalen_batch.worker.tasks import FIRINGS, register, reported

PROMPT = "the user's secret prompt"


def job(batch_id: str) -> None:
    raise ValueError(f"could not read {PROMPT!r}")


def test_a_crash_is_told_with_its_place_and_without_its_words() -> None:
    with capture_logs() as events:
        reported(job)("0" * 32)
    (event,) = events
    assert (event["event"], event["log_level"], event["job"], event["error"]) == (
        "job.crashed",
        "error",
        "job",
        "ValueError",
    )
    assert "test_tasks.py" in event["at"]
    assert "prompt" not in repr(event)


def test_a_store_that_is_away_is_no_crash() -> None:
    def away(batch_id: str) -> None:
        raise OSError("no route to host")

    with capture_logs() as events:
        reported(away)("0" * 32)
    (event,) = events
    assert (event["event"], event["log_level"], event["job"], event["error"]) == (
        "job.postponed",
        "warning",
        "away",
        "OSError",
    )
    assert (event["reason"], event["batch_id"]) == ("storage.unreachable", UUID(int=0))


def test_an_argument_that_is_no_id_is_not_logged() -> None:
    with capture_logs() as events:
        reported(job)("a prompt")
    (event,) = events
    assert event["batch_id"] is None
    assert "prompt" not in repr(event)


def test_a_cause_names_the_innermost_places_first() -> None:
    with pytest.raises(ValueError, match="secret") as raised:
        job("")
    assert log.cause(raised.value)["at"].split(" < ")[0].endswith(" job")


def test_a_process_fires_in_so_many_threads_and_one_more_leaves_it_to_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()
    fired: list[bool] = []

    def run() -> None:
        begun.release()
        fired.append(go_on.wait(timeout=PATIENCE))

    monkeypatch.setattr(fire, "run", run)
    fire_schedules = register(Celery("test"), cast(Engine, None), cast(Sender, None))[Job.FIRE]
    threads = [threading.Thread(target=fire_schedules) for _ in range(FIRINGS)]
    for thread in threads:
        thread.start()
        assert begun.acquire(timeout=PATIENCE)
    fire_schedules()
    assert fired == []
    go_on.set()
    for thread in threads:
        thread.join(timeout=PATIENCE)
    fire_schedules()
    assert fired == [True] * (FIRINGS + 1)


def test_no_task_is_registered_but_ours() -> None:
    app = Celery("test")
    register(app, cast(Engine, None), cast(Sender, None))
    app.finalize()
    assert set(app.tasks) == set(Job)
