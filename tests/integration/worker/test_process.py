"""The poll of a worker: it runs due work without the broker, and writes the heartbeat."""

import queue
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import factories
from tests.waiting import PATIENCE
from xalen_batch import db
from xalen_batch.broker import Job
from xalen_batch.pipeline import recover
from xalen_batch.worker.process import Poll


@pytest.mark.usefixtures("database")
def test_a_batch_whose_message_was_lost_is_found_and_run(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configure(poll_interval=0.02, tick_interval=3600, health_file=tmp_path / "alive")
    monkeypatch.setattr(recover, "LOST_AFTER", recover.LOST_AFTER * 0)
    with db.transaction() as session:
        caller = factories.caller(session)
        batch = factories.batch(
            session, caller, factories.input_file(session, caller, [factories.chat_line("a")])
        )
    started: queue.Queue[tuple[object, ...]] = queue.Queue()

    def spawn(function: Callable[..., object], *args: object) -> bool:
        function(*args)
        return True

    shares: list[int] = []
    poll = Poll(
        {Job.VALIDATE: lambda id: started.put((Job.VALIDATE, id)), Job.DELIVER: list},
        spawn,
        shares.append,
        list,
    )
    poll.start()
    try:
        assert started.get(timeout=PATIENCE) == (Job.VALIDATE, batch.id.hex)
        started.get(timeout=PATIENCE)
        assert (tmp_path / "alive").exists()
        assert shares[0] == 1
    finally:
        poll.stop()
