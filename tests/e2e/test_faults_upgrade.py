"""Operations on a running system: a migration, a restore from a backup, and clocks that jump."""

import sys
from pathlib import Path

from tests.e2e import processes
from tests.e2e.stack import LINES, Stack

# A process whose wall clock jumps by an hour, to and fro, every second. Its monotonic clock goes
# on, as a real one does.
JUMPING = """
import sys, threading, time
from datetime import UTC, datetime, timedelta
import time_machine
from xalen_batch.cli.main import app

def jump():
    by = timedelta(hours=int(sys.argv.pop()))
    while True:
        to = time_machine.travel(datetime.now(UTC) + by, tick=True)
        to.start()
        threading.Event().wait(1)
        to.stop()
        by = -by

threading.Thread(target=jump, daemon=True).start()
threading.Event().wait(0.1)
app()
"""


def test_migrating_again_in_mid_batch(services: Stack) -> None:
    batch = services.submit_and_wait_for_some()
    for _ in range(2):
        processes.run("migrate", env=services.owner_env(), timeout=300).check_returncode()
    services.is_done(batch)


def test_a_newer_version_migrates_in_mid_batch(services: Stack) -> None:
    def set_revision(revision: str) -> str:
        with services.direct() as session:
            row = session.execute("SELECT version_num FROM alembic_version").fetchone()
            session.execute("UPDATE alembic_version SET version_num = %s", [revision])
        assert row is not None
        return str(row[0])

    batch = services.submit_and_wait_for_some()
    ours = set_revision("9999")
    try:
        services.wait_until_ready()
        migration = processes.run("migrate", env=services.owner_env(), timeout=300)
        said = migration.stderr.decode()
        assert migration.returncode == 1
        assert "at revision 9999, which a newer version of xalen-batch made" in " ".join(
            said.split()
        )
        assert "Traceback" not in said
        services.is_done(batch)
    finally:
        set_revision(ours)


def test_a_backup_restored_in_mid_batch_goes_on_to_the_end(services: Stack, tmp_path: Path) -> None:
    batch = services.submit_and_wait_for_some()
    backup = tmp_path / "backup.dump"
    services.dump(backup)
    services.is_done(batch)
    billed = "SELECT line_no, body, amount FROM results WHERE batch_id = %s ORDER BY line_no"
    id = batch.id.removeprefix("batch_")
    restored = services.restore(backup, "restored")
    with restored.direct() as session:
        then = session.execute(billed, [id]).fetchall()
        assert 0 < len(then) < LINES
        with restored.serving():
            restored.is_done(batch)
        now = {row[0]: row for row in session.execute(billed, [id]).fetchall()}
    assert len(now) == LINES
    assert [now[row[0]] for row in then] == then


def test_clocks_that_jump_by_an_hour(services: Stack) -> None:
    processes.stop(services.worker)
    jumping = []
    try:
        for hours in (1, -1):
            with (services.folder / "worker.log").open("ab") as log:
                jumping.append(
                    processes.start(
                        [sys.executable, "-c", JUMPING, "worker", str(hours)],
                        log=log,
                        env=services.env(),
                    )
                )
        batches = [services.submit() for _ in range(2)]
        for batch in batches:
            services.is_done(batch)
        assert [process.poll() for process in jumping] == [None, None]
        log_of_worker = (services.folder / "worker.log").read_text("utf-8", "replace")
        assert "slot.crashed" not in log_of_worker
        with services.direct() as session:
            ids = [batch.id.removeprefix("batch_") for batch in batches]
            losses = session.execute(
                "SELECT sum(losses) FROM tasks WHERE batch_id = ANY(%s::uuid[])", [ids]
            ).fetchone()
        assert losses == (0,)
    finally:
        for process in jumping:
            processes.stop(process)
        services.worker = services.start("worker")
