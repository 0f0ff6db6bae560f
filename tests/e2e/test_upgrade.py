"""A rolling upgrade from the version before sealing, whose own processes go on beside the new ones.

XALEN_TEST_OLD is a checkout of that version (docs/reliability.md). Without it, the data and the
statements of that version are tested in tests/integration/migrate/test_upgrade.py.
"""

import copy
import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from openai.types import Batch

from tests import factories
from tests.e2e import processes, stack
from tests.e2e.stack import ENDED, Stack
from xalen_batch.billing import reconcile

OLD = os.environ.get("XALEN_TEST_OLD")
SHARED_LINES = 1_500
SMALL = 60
# Answered, refused, and answered without usage, so that xalen-batch counts the tokens.
MIXED = [
    factories.chat_line(f"line-{n}", metadata={"simulate": fault} if fault else {})
    for n, fault in enumerate(["", "status=400", "no_usage"] * (SMALL // 3))
]
MIXED_IDS = [str(line["custom_id"]) for line in MIXED]
INVALID = {**factories.chat_line("invalid"), "method": "GET"}
# The locks that a test waits for are those of the tables that it locked.
WAITS = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = %s::regclass"


@pytest.fixture
def old() -> Iterator[Stack]:
    with stack.running(Path(str(OLD)).absolute()) as running:
        yield running


def new_beside(old: Stack) -> Stack:
    """An API and a worker of this version on the same stores."""
    new = copy.copy(old)
    new.code = None
    new.port = processes.free_port()
    new.settings = old.settings | {"port": new.port}
    new.api, new.worker = new.start("api"), new.start("worker")
    new.wait_until_ready()
    return new


def create(services: Stack, lines: list[dict[str, Any]], **options: Any) -> Batch:
    client = services.client()
    file = client.files.create(file=("lines.jsonl", factories.jsonl(lines)), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_body=options,
    )


def ended(services: Stack, batch: Batch) -> Batch:
    return services.wait_for(batch, lambda b: b.status in ENDED, timeout=240)


def contents(services: Stack, batch: Batch) -> dict[str, bytes]:
    """The bytes of the batch's files."""
    client = services.client()
    named = {"output": batch.output_file_id, "error": batch.error_file_id}
    return {part: client.files.content(id).content for part, id in named.items() if id}


def invoice(services: Stack, batch: Batch) -> dict[str, Any]:
    return services.client().get(f"/batches/{batch.id}/invoice", cast_to=dict)


def is_whole(services: Stack, batch: Batch, custom_ids: list[str]) -> None:
    """Assert that each line is once in one of the files, in its counts and on the invoice."""
    found = ended(services, batch)
    files = {
        part: [json.loads(line)["custom_id"] for line in content.splitlines()]
        for part, content in contents(services, found).items()
    }
    assert Counter(chain.from_iterable(files.values())) == Counter(custom_ids)
    counts = found.request_counts
    assert counts is not None
    assert (counts.completed, counts.total) == (len(files.get("output", [])), len(custom_ids))
    not_billed = sum(
        int(line["quantity"])
        for line in invoice(services, found)["lines"]
        if line["kind"] == "not_billed" and not line["component"]
    )
    assert not_billed == len(files.get("error", []))


@contextmanager
def waiting_for(holder: psycopg.Connection, table: str, services: Stack) -> Iterator[None]:
    """Lock out writers of a table; on leaving, another session waits for it."""
    holder.execute(f"LOCK TABLE {table} IN SHARE MODE".encode())
    yield
    with services.direct() as session:
        processes.wait_until(
            lambda: session.execute(WAITS, [table]).fetchone() != (0,),
            log=services.folder / "worker.log",
        )


class Nightly:
    """A schedule with an inbox, and its runs."""

    def __init__(self, services: Stack) -> None:
        self.runs: list[str] = []
        body = {
            "name": "nightly",
            "cron": "30 2 * * *",
            "timezone": "Europe/Berlin",
            "endpoint": "/v1/chat/completions",
            "inbox": {},
            "overlap": "allow",
        }
        made = services.client().post("/schedules", cast_to=dict, body=body)
        self._path = f"/schedules/{made['id']}"

    def run(self, services: Stack) -> None:
        """Collect two requests and start a run with them."""
        client = services.client()
        for n in range(2):
            line = factories.chat_line(f"{{{{run_id}}}}-{n}")
            client.post(f"{self._path}/requests", cast_to=dict, body=line)
        self.runs.append(client.post(f"{self._path}/run", cast_to=dict)["id"])

    def states(self, services: Stack) -> dict[str, str]:
        found = services.client().get(f"{self._path}/runs", cast_to=dict)["data"]
        return {run["id"]: run["state"] for run in found}


class Kept(NamedTuple):
    """A batch that ended before the upgrade, the bytes of its files, and its invoice."""

    batch: Batch
    contents: dict[str, bytes]
    invoice: dict[str, Any]

    @classmethod
    def of(cls, services: Stack, batch: Batch) -> "Kept":
        return cls(batch, contents(services, batch), invoice(services, batch))

    def is_same(self, services: Stack) -> bool:
        return Kept.of(services, self.batch) == self


def end_some(old: Stack) -> list[Kept]:
    """Batches that end before the upgrade: one with skipped, refused and counted lines, one that is
    cancelled half-way, one that fails, and one whose output file is deleted.
    """
    client = old.client()
    skipped = create(old, [*MIXED, INVALID], on_invalid="skip")
    failed, erased = create(old, [INVALID]), create(old, MIXED)
    cancelled = old.submit_and_wait_for_some()
    client.batches.cancel(cancelled.id)
    skipped, failed, erased, cancelled = (
        ended(old, batch) for batch in (skipped, failed, erased, cancelled)
    )
    statuses = [batch.status for batch in (skipped, failed, erased, cancelled)]
    assert statuses == ["completed", "failed", "completed", "cancelled"]
    assert erased.output_file_id is not None
    client.files.delete(erased.output_file_id)
    return [Kept.of(old, skipped), Kept.of(old, cancelled)]


def migrate_while_work_is_held(old: Stack, nightly: Nightly) -> list[Batch]:
    """Migrate while a lock holds one batch in validation, another one in being finalized, and the
    lines of a third; one of two workers is killed there. Returns the first two batches.
    """
    log = old.folder / "migrate.log"
    migrating = copy.copy(old)
    migrating.code = None
    second = old.start("worker")
    with old.direct() as holder, holder.transaction(), log.open("wb") as out:
        with waiting_for(holder, "invoices", old):
            finalizing = create(old, MIXED)
        with waiting_for(holder, "tasks", old):
            validating = create(old, MIXED)
        nightly.run(old)
        old.kill(second)
        migration = subprocess.Popen(
            old.migration, env=migrating.owner_env(), stdout=out, stderr=out
        )
        processes.wait_until(
            lambda: b"migrate.waits_for_lock" in log.read_bytes(), process=migration, log=log
        )
    assert migration.wait(300) == 0, log.read_text("utf-8")
    return [finalizing, validating]


def is_shared(services: Stack, batch: Batch) -> bool:
    """Whether workers of both versions recorded lines: the old ones do not keep all sums."""
    with services.direct() as session:
        by_new, by_old = session.execute(
            "SELECT count(*) FILTER (WHERE summed > 0), count(*) FILTER (WHERE summed < completed)"
            " FROM tasks WHERE batch_id = %s",
            [batch.id.removeprefix("batch_")],
        ).fetchone() or (0, 0)
    return bool(by_new and by_old)


def wait_until_sealed(services: Stack) -> None:
    with services.direct() as session:
        unsealed = "SELECT FROM batches WHERE sealed_at IS NULL AND status <> 'failed'"
        processes.wait_until(
            lambda: not session.execute(unsealed).fetchall(), log=services.folder / "worker.log"
        )


def drop_rows(services: Stack) -> None:
    """Drop the rows of sealed batches as if it were next month."""
    with services.direct() as session:
        drop = "SELECT drop_sealed_results(now() + interval '30 days')"
        while session.execute(drop).fetchone() != (None,):
            pass
        left = "SELECT FROM pg_inherits WHERE inhparent = 'results'::regclass"
        assert session.execute(left).fetchall() == []


def test_old_and_new_processes_share_batches_in_every_state(old: Stack) -> None:
    nightly = Nightly(old)
    nightly.run(old)
    kept = end_some(old)
    running = old.submit_and_wait_for_some()
    held = migrate_while_work_is_held(old, nightly)

    # The old processes alone on the new schema.
    old.wait_until_ready()
    mixed = [*held, create(old, MIXED)]
    ended(old, mixed[-1])
    shared = old.submit(SHARED_LINES)
    old.wait_for(shared, lambda b: b.status == "in_progress", timeout=60)

    new = new_beside(old)
    mixed += [create(old, MIXED), create(new, MIXED)]
    for services in (old, new):
        nightly.run(services)
    new.is_done(shared, lines=SHARED_LINES)
    assert is_shared(new, shared)
    new.is_done(running)
    for batch in mixed:
        for services in (old, new):
            is_whole(services, batch, MIXED_IDS)
    processes.wait_until(
        lambda: nightly.states(new) == dict.fromkeys(nightly.runs, "succeeded"),
        log=old.folder / "worker.log",
    )
    wait_until_sealed(new)
    # The old API reads the rows, the new one the objects.
    assert all(one.is_same(services) for one in kept for services in (old, new))

    processes.stop(old.worker)
    processes.stop(old.api)
    mixed.append(create(new, MIXED))
    is_whole(new, mixed[-1], MIXED_IDS)
    wait_until_sealed(new)
    drop_rows(new)
    assert all(one.is_same(new) for one in kept)
    for batch in mixed:
        is_whole(new, batch, MIXED_IDS)
    assert list(reconcile.differences(new.snapshot)) == []
    logged = "".join(
        (old.folder / name).read_text("utf-8", "replace") for name in ("api.log", "worker.log")
    )
    for bug in ("crashed", "sweep.failed", "Traceback", "cached plan", "unsealable"):
        assert bug not in logged
