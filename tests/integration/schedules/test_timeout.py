"""Reading a folder on a share whose server is down hangs; this delays only the schedules of that
folder.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from tests import factories
from tests.integration.clock import Clock
from tests.integration.schedules import firing
from tests.integration.schedules.firing import NIGHT, made, runs_of
from tests.waiting import wait_until
from xalen_batch.accounts.accounts import Owner
from xalen_batch.schedules import fire, folders, timeout

pytestmark = pytest.mark.usefixtures("database", "valkey")
clock, owner = firing.clock, firing.owner


def test_a_folder_that_hangs_holds_up_no_other_schedule(
    clock: Clock,
    owner: Owner,
    configure: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    drop = tmp_path / "drop"
    drop.mkdir()
    (drop / "a.jsonl").write_bytes(factories.jsonl([factories.chat_line("a")]))
    configure(drop_roots=drop)
    back, looks = threading.Event(), []
    files = folders.Folder.files

    def hang(folder: folders.Folder) -> list[folders.Found]:
        looks.append(folder)
        back.wait(120)
        return files(folder)

    hanging = [made(owner, source={"folder": str(drop)}) for _ in range(3)]
    healthy = made(owner)
    clock.set(NIGHT)
    with monkeypatch.context() as patch:
        patch.setattr(folders.Folder, "files", hang)
        # Long enough for a busy machine to begin the read that hangs.
        patch.setattr(timeout, "FOLDER_TIMEOUT", 1.0)
        try:
            fire.run()
            fire.run()
            assert told(healthy) == ("running", None)
            assert {told(id) for id in hanging} == {("waiting", "storage_unreachable")}
            # One thread hangs, however many schedules there are and however often they are tried.
            assert len(looks) == 1
        finally:
            back.set()
    wait_until(lambda: not timeout._hanging[drop].is_alive())
    fire.run()
    assert [told(id) for id in hanging] == [("running", None)] * 3


def told(schedule_id: UUID) -> tuple[str, str | None]:
    (run,) = runs_of(schedule_id)
    return run.state, run.reason
