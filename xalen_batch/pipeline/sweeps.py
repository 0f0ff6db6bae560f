"""Sweeps: housekeeping in bounded steps. A sweep that fails does not stop the others.

Any number of processes may sweep at once. A walk is a generator that yields after each step, and
each step has a transaction of its own. `Sweep.run` advances a walk for a turn, and the next
tick resumes it. After a crash the walk starts anew.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, select, tuple_

from xalen_batch import db, erasure, events, files, log, storage, uploads
from xalen_batch.accounts import audit
from xalen_batch.billing import statements
from xalen_batch.config import settings
from xalen_batch.errors import UploadBusy
from xalen_batch.metrics import counted
from xalen_batch.models import File, IdempotencyKey, UploadPart, partitions, tasks
from xalen_batch.pipeline import pace
from xalen_batch.schedules import history
from xalen_batch.storage import marks
from xalen_batch.webhooks import endpoints

logger = log.get(__name__)

# Seconds for which a tick advances a sweep that names no other.
TURN = 3.0
HOUR = 3_600.0
KEYS_AT_ONCE = 1_000
FILES_AT_ONCE = 500
OBJECTS_AT_ONCE = 1_000
# Seconds after which the system has written an object to the disk; its rows are not dropped before.
WRITTEN_BACK = HOUR
# Age from which a stored object without a file row is an orphan of a crash. An upload that is still
# being written is younger: the API ends uploads whose client stalls.
ORPHAN_AFTER = timedelta(hours=6)


@contextmanager
def isolated(sweep: str, **ids: UUID | str) -> Iterator[None]:
    """Log an error of one step instead of raising it, so that the sweep goes on with other steps.

    A later walk repeats the step.
    """
    try:
        yield
    except (*db.UNAVAILABLE, *storage.UNAVAILABLE) as error:
        reason = db.trouble(error) if isinstance(error, db.UNAVAILABLE) else "storage.unreachable"
        logger.warning(
            "sweep.postponed", sweep=sweep, error=type(error).__name__, reason=reason, **ids
        )
    except Exception as error:
        counted.SWEEPS_FAILED.labels(sweep).inc()
        logger.error("sweep.failed", sweep=sweep, **ids, **log.cause(error))


@dataclass
class Sweep:
    """A walk, resumed at each tick. Any thread of a worker may call `run`.

    `walk` makes a generator that yields after each step. `rest`: seconds between the end of a walk
    and the start of the next. `turn`: seconds for which a tick advances it.
    """

    name: str
    walk: Callable[[], Iterator[None]]
    rest: float = 0.0
    turn: float = TURN
    _steps: Iterator[None] | None = None
    _ended_at: float = -HOUR
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        """Advance the walk until it ends or its turn is over. Never raises.

        Does nothing while another thread advances it.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._steps is None and time.monotonic() - self._ended_at >= self.rest:
                self._steps = self.walk()
            if self._steps is not None and not self._advance(self._steps):
                self._steps, self._ended_at = None, time.monotonic()
        finally:
            self._lock.release()

    def _advance(self, steps: Iterator[None]) -> bool:
        """Whether the walk has more steps. An error ends the walk."""
        turn_ends = time.monotonic() + self.turn
        with isolated(self.name):
            for _ in steps:
                if time.monotonic() >= turn_ends:
                    return True
        return False


def _forget_keys() -> Iterator[None]:
    """Delete idempotency keys that are older than the retention."""
    old = select(IdempotencyKey.account_id, IdempotencyKey.livemode, IdempotencyKey.key)
    key = tuple_(IdempotencyKey.account_id, IdempotencyKey.livemode, IdempotencyKey.key)
    while True:
        is_old = IdempotencyKey.created_at < func.now() - timedelta(
            seconds=settings().idempotency_retention
        )
        some = old.where(is_old).limit(KEYS_AT_ONCE).with_for_update(skip_locked=True)
        with db.transaction() as session:
            gone = session.execute(
                delete(IdempotencyKey).where(key.in_(some)).returning(IdempotencyKey.key)
            ).all()
        if not gone:
            return
        yield


def _issue_statements() -> Iterator[None]:
    """Issue the statements of months that are over, each in its own transaction."""
    while True:
        issued = 0
        with db.reading() as session:
            found = statements.due(session)
        for due in found:
            with isolated("statements", account_id=due.account_id), db.transaction() as session:
                issued += statements.issue(session, due)
            yield
        # A statement that cannot be issued stays due, so `found` may never be empty.
        if not issued:
            return


def _expire_files() -> Iterator[None]:
    """Delete expired files, FILES_AT_ONCE in a transaction, or each in its own if one fails.

    Input files that an open batch or a schedule reads are kept until then.
    """
    position = tuple_(File.expires_at, File.id)
    expired = (
        select(File.expires_at, File.id)
        .where(*_is_expired())
        .order_by(File.expires_at, File.id)
        .limit(FILES_AT_ONCE)
    )
    after: tuple[datetime | None, UUID] | None = None
    while True:
        with db.reading() as session:
            found = session.execute(
                expired if after is None else expired.where(position > after)
            ).all()
        if not found:
            return
        # Keyset pagination also skips a file that cannot be deleted.
        after = (found[-1].expires_at, found[-1].id)
        yield from _delete_expired([id for _, id in found])


def _is_expired() -> tuple[ColumnElement[bool], ...]:
    return (
        File.deleted_at.is_(None),
        File.expires_at <= func.now(),
        ~files.is_read(),
        ~files.has_schedule(),
    )


def _delete_expired(file_ids: Sequence[UUID]) -> Iterator[None]:
    try:
        _delete_together(file_ids)
    except Exception:
        # One of them would stop the others; alone, it names itself in the log.
        for id in file_ids:
            with isolated("expired files", file_id=id):
                _delete_together([id])
            yield
    else:
        yield


def _delete_together(file_ids: Sequence[UUID]) -> None:
    """Delete these files, but for those that are locked, gone or needed by now."""
    with db.transaction() as session:
        found = session.scalars(
            select(File)
            .where(File.id.in_(file_ids), *_is_expired())
            .with_for_update(skip_locked=True)
        ).all()
        files.erase_all(session, found)
    for file in found:
        logger.info("file.expired", file_id=file.id)


def _end_uploads() -> Iterator[None]:
    """Delete the parts of uploads whose time is over, and rows of uploads that ended long ago."""
    after: tuple[datetime, UUID] | None = None
    while True:
        with db.reading() as session:
            found = uploads.over(session, after)
        for expires_at, id in found:
            # Keyset pagination also skips an upload that is being joined.
            after = (expires_at, id)
            with isolated("uploads", upload_id=id), suppress(UploadBusy):
                uploads.expire(id)
            yield
        if not found:
            break
    while True:
        with db.transaction() as session:
            gone = uploads.forget(session)
        if not gone:
            return
        yield


def _erase_answers() -> Iterator[None]:
    """Erase the answers of deleted output files."""
    while True:
        with db.transaction() as session:
            is_more = erasure.go_on(session)
        if not is_more:
            return
        yield


def _delete_orphans() -> Iterator[None]:
    """Remove objects without a row: uploads and parts of which a crash prevented the row's commit,
    and sealed files that were deleted while they were written.
    """
    # Objects of another database's store also have no row here, and must be kept.
    marks.confirm()
    horizon = datetime.now(UTC) - ORPHAN_AFTER
    for prefix in ("input", "output", "parts"):
        for gone in storage.delete_unfinished(prefix, before=horizon, at_once=OBJECTS_AT_ONCE):
            for name in gone:
                logger.warning("file.unfinished_deleted", name=name)
            yield
        objects = storage.listing(prefix)
        while some := list(islice(objects, OBJECTS_AT_ONCE)):
            _delete_orphans_of(prefix, [key for key, written in some if written < horizon])
            yield


def _delete_orphans_of(prefix: str, old: list[str]) -> None:
    keys = {}
    for key in old:
        id = storage.id_of(key)
        if id is not None:
            keys[key] = id
    if prefix == "parts":
        rows = select(UploadPart.id).where(UploadPart.id.in_(keys.values()))
    else:
        rows = select(File.id).where(File.id.in_(keys.values()), File.deleted_at.is_(None))
    with db.reading() as session:
        known = set(session.scalars(rows))
    orphans = [key for key, id in keys.items() if id not in known]
    if orphans:
        # Another disk may have been mounted since the walk began.
        marks.confirm()
    for key in orphans:
        with isolated("orphans", key=key):
            storage.delete(key)
            logger.warning("file.orphan_deleted", key=key)


def _keep_partitions() -> Iterator[None]:
    """Make the partitions of the coming days, and drop those past their retention."""
    with db.transaction() as session:
        partitions.make_ahead(session)
    yield
    retention = settings().row_retention
    while retention != "forever":
        with db.transaction() as session:
            dropped = partitions.drop_sealed(session, older_than=max(retention, WRITTEN_BACK))
        if dropped is None:
            return
        logger.info("rows.dropped", partition=dropped)
        yield


def _forget_tasks() -> Iterator[None]:
    """Delete the tasks of sealed batches, with their index of lines, past their retention."""
    retention = settings().row_retention
    if retention == "forever":
        return
    after: tuple[UUID, int] | None = None
    while True:
        with db.transaction() as session:
            after = tasks.forget(session, max(retention, WRITTEN_BACK), after)
        if after is None:
            return
        yield


def _forget_runs() -> Iterator[None]:
    """Delete ended runs of schedules, and what deleted schedules took, past their retention."""
    retention = settings().run_retention
    if retention == "forever":
        return
    life = timedelta(seconds=retention)
    for forget in (history.forget_runs, history.forget_objects):
        while True:
            with db.transaction() as session:
                gone = forget(session, life)
            if not gone:
                break
            yield


def _forget_audit() -> Iterator[None]:
    """Delete entries of the audit log past their retention."""
    retention = settings().audit_retention
    while retention != "forever":
        with db.transaction() as session:
            gone = audit.forget(session, timedelta(seconds=retention))
        if not gone:
            return
        yield


def _forget_events() -> Iterator[None]:
    """Delete events with their deliveries, and webhooks that are over, past their retention."""
    life = timedelta(seconds=settings().event_retention)
    for forget in (events.forget, endpoints.forget):
        while True:
            with db.transaction() as session:
                gone = forget(session, life)
            if not gone:
                break
            yield


KEYS = Sweep("idempotency keys", _forget_keys)
STATEMENTS = Sweep("statements", _issue_statements)
EXPIRED = Sweep("expired files", _expire_files)
ANSWERS = Sweep("erased answers", _erase_answers)
TASKS = Sweep("ended tasks", _forget_tasks, rest=HOUR)
RUNS = Sweep("runs of schedules", _forget_runs, rest=HOUR)
AUDIT = Sweep("audit log", _forget_audit, rest=HOUR)
EVENTS = Sweep("events", _forget_events, rest=HOUR)
UPLOADS = Sweep("uploads", _end_uploads)
PARTITIONS = Sweep("partitions", _keep_partitions, rest=HOUR)
# Each walk lists the whole store: a million objects take two hours of turns.
ORPHANS = Sweep("orphans", _delete_orphans, rest=HOUR, turn=0.15)
PACE = Sweep("paces", pace.walk, rest=10.0)
ALL = (
    PACE,
    KEYS,
    STATEMENTS,
    EXPIRED,
    UPLOADS,
    ANSWERS,
    PARTITIONS,
    TASKS,
    RUNS,
    AUDIT,
    EVENTS,
    ORPHANS,
)
