"""A folder on a share whose server is gone hangs whoever looks into it: that costs its own schedules time, and no other."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import select, update

from tests import factories
from tests.integration.test_engine_races import wait_until
from xalen_batch import db, ids
from xalen_batch.models import Schedule, ScheduleRun
from xalen_batch.schedules import drops, fire, patience

pytestmark = pytest.mark.usefixtures("database", "valkey")


def test_a_folder_that_hangs_holds_up_no_other_schedule(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drop = tmp_path / "drop"
    drop.mkdir()
    (drop / "a.jsonl").write_bytes(factories.jsonl([factories.chat_line("a")]))
    configure(drop_roots=drop)
    monkeypatch.setattr(patience, "PATIENCE", 0.2)
    back, looks = threading.Event(), []
    files = drops.Folder.files

    def hang(folder: drops.Folder) -> list[drops.Found]:
        looks.append(folder)
        back.wait(60)
        return files(folder)

    monkeypatch.setattr(drops.Folder, "files", hang)
    with db.transaction() as session:
        owner = factories.caller(session)
        file = ids.render("file", factories.input_file(session, owner, [factories.chat_line("a")]).id)
        hanging = [factories.schedule(session, owner, source={"folder": str(drop)}).id for _ in range(3)]
        healthy = factories.schedule(session, owner, input_file_id=file).id
        session.execute(update(Schedule).values(next_fire_at=datetime.now(UTC) - timedelta(seconds=1)))
    try:
        fire.run()
        fire.run()
        assert state_of(healthy) == ("running", None)
        assert {state_of(id) for id in hanging} == {("waiting", "storage_unreachable")}
        # One thread hangs, however many schedules there are and however often they are tried.
        assert len(looks) == 1
    finally:
        back.set()
    wait_until(lambda: not patience._hanging[drop].is_alive())
    fire.run()
    assert [state_of(id) for id in hanging] == [("running", None)] * 3


def state_of(schedule_id: UUID) -> tuple[str, str | None]:
    with db.transaction() as session:
        run = session.scalars(select(ScheduleRun).where(ScheduleRun.schedule_id == schedule_id)).one()
        return run.state, run.reason
