"""Sweeps: housekeeping in bounded steps. Each sweep has its own transactions and its own errors, so
none can stop another.

Any number of processes may sweep at once. A walk is a generator that yields after each step;
`Sweep.run` advances it for a few seconds, and the next tick goes on from there. A walk that was cut
off by a crash starts again.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from uuid import UUID

from sqlalchemy import delete, func, select, tuple_

from xalen_batch import db, erasure, files, log, storage
from xalen_batch.billing import statements
from xalen_batch.config import settings
from xalen_batch.models import Batch, File, IdempotencyKey
from xalen_batch.states import TERMINAL
from xalen_batch.storage import marks

logger = log.get(__name__)

# Seconds that one sweep may take of a tick.
TURN = 3.0
HOUR = 3_600.0
KEYS_AT_ONCE = 1_000
FILES_AT_ONCE = 100
OBJECTS_AT_ONCE = 1_000
# An upload without a row is either being written, and then not this old (its client may not stall),
# or was left by a crash.
ORPHAN_AFTER = timedelta(hours=6)


@contextmanager
def apart(sweep: str, **ids: UUID | str) -> Iterator[None]:
    """Log an error of one step instead of raising it: the sweep tries that step again later and
    goes on with the others.
    """
    try:
        yield
    except (*db.UNAVAILABLE, *storage.UNAVAILABLE) as error:
        reason = db.trouble(error) if isinstance(error, db.UNAVAILABLE) else "storage.unreachable"
        logger.warning(
            "sweep.postponed", sweep=sweep, error=type(error).__name__, reason=reason, **ids
        )
    except Exception as error:
        logger.error("sweep.failed", sweep=sweep, **ids, **log.cause(error))


@dataclass
class Sweep:
    """`walk` makes a generator that yields after each step.

    `rest`: seconds between the end of a walk and the next.
    """

    name: str
    walk: Callable[[], Iterator[None]]
    rest: float = 0.0
    _steps: Iterator[None] | None = None
    _ended_at: float = -HOUR
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        """Advance the walk until it ends or its turn is over.

        Never raises; does nothing while another thread is at it.
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
        """Whether there are more steps. An error ends the walk."""
        turn_ends = time.monotonic() + TURN
        with apart(self.name):
            for _ in steps:
                if time.monotonic() >= turn_ends:
                    return True
        return False


def _forget_keys() -> Iterator[None]:
    """Delete idempotency keys past their time."""
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
            with apart("statements", account_id=due.account_id), db.transaction() as session:
                issued += statements.issue(session, due)
            yield
        # One that fails stays due; another walk tries it again.
        if not issued:
            return


def _expire_files() -> Iterator[None]:
    """Delete files past their time, one in a transaction.

    An input file that a batch or a schedule still needs waits for it.
    """
    is_needed = (
        select(Batch.id)
        .where(Batch.input_file_id == File.id, Batch.status.not_in(TERMINAL))
        .exists()
    )
    is_expired = (
        File.deleted_at.is_(None),
        File.expires_at <= func.now(),
        ~is_needed,
        ~files.has_schedule(),
    )
    place = tuple_(File.expires_at, File.id)
    expired = (
        select(File.expires_at, File.id)
        .where(*is_expired)
        .order_by(File.expires_at, File.id)
        .limit(FILES_AT_ONCE)
    )
    after: tuple[datetime | None, UUID] | None = None
    while True:
        with db.reading() as session:
            found = session.execute(
                expired if after is None else expired.where(place > after)
            ).all()
        for expires_at, id in found:
            # Behind a file that fails, the walk goes on with the next.
            after = (expires_at, id)
            with apart("expired files", file_id=id), db.transaction() as session:
                file = session.scalars(
                    select(File).where(File.id == id, *is_expired).with_for_update(skip_locked=True)
                ).one_or_none()
                if file is not None:
                    files.erase(session, file)
                    logger.info("file.expired", file_id=id)
            yield
        if not found:
            return


def _erase_answers() -> Iterator[None]:
    """Erase what deleted output files showed."""
    while True:
        with db.transaction() as session:
            is_more = erasure.go_on(session)
        if not is_more:
            return
        yield


def _delete_orphans() -> Iterator[None]:
    """Remove stored uploads that no file row stands for: a crash came while one was written, or
    between writing and committing.
    """
    # What another database's folder holds is not ours to remove.
    marks.confirm()
    horizon = datetime.now(UTC) - ORPHAN_AFTER
    for name in storage.delete_unfinished("input", before=horizon):
        logger.warning("file.unfinished_deleted", name=name)
    objects = storage.listing("input")
    while some := list(islice(objects, OBJECTS_AT_ONCE)):
        _delete_orphans_of([key for key, written in some if written < horizon])
        yield


def _delete_orphans_of(old: list[str]) -> None:
    keys = {key: id for key in old if (id := storage.file_id(key))}
    with db.reading() as session:
        known = set(
            session.scalars(
                select(File.id).where(File.id.in_(keys.values()), File.deleted_at.is_(None))
            )
        )
    orphans = [key for key, id in keys.items() if id not in known]
    if orphans:
        # The store may have been exchanged since the walk began.
        marks.confirm()
    for key in orphans:
        with apart("orphans", key=key):
            storage.delete(key)
            logger.warning("file.orphan_deleted", key=key)


KEYS = Sweep("idempotency keys", _forget_keys)
STATEMENTS = Sweep("statements", _issue_statements)
EXPIRED = Sweep("expired files", _expire_files)
ANSWERS = Sweep("erased answers", _erase_answers)
# A walk lists the whole folder.
ORPHANS = Sweep("orphans", _delete_orphans, rest=HOUR)
ALL = (KEYS, STATEMENTS, EXPIRED, ANSWERS, ORPHANS)
