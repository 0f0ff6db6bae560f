"""Ledgers: batches that live calls are recorded in as they are answered.

An account and mode has a ledger for each day (UTC), model, endpoint and price. It has one task, of
which all API processes add lines. It is created in the status `finalizing`, with a lease until the
end of its day, so that no worker claims it or looks at it before. When the lease has run out, a
worker finalizes it: invoice, sealing and statements are those of every batch.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Text, bindparam, func, insert, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session

from xalen_batch.models.base import table_of
from xalen_batch.models.batches import Batch
from xalen_batch.models.results import Result
from xalen_batch.models.tasks import TOKEN_COUNTERS, Task
from xalen_batch.states import BatchStatus, TaskState

# First half of the key of the advisory lock of a new ledger; the second half is a hash of its id.
LOCK = 7261963
# The only task of a ledger, and its fence.
SEQ = 0
FENCE = 1

_BATCHES, _TASKS, _RESULTS = table_of(Batch), table_of(Task), table_of(Result)
_DAY = text("to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')")
_MIDNIGHT = text(
    "(date_trunc('day', now() AT TIME ZONE 'UTC') + interval '1 day') AT TIME ZONE 'UTC'"
)
_TODAYS = func.concat(_DAY, " ", bindparam("name", type_=Text))
_FIND = select(_BATCHES.c.id).where(
    _BATCHES.c.account_id == bindparam("account_id"),
    _BATCHES.c.livemode == bindparam("livemode"),
    _BATCHES.c.ledger == _TODAYS,
)
_CREATE = (
    postgresql.insert(_BATCHES)
    .values(
        ledger=_TODAYS,
        status=BatchStatus.FINALIZING.value,
        completion_window="24h",
        in_progress_at=func.now(),
        finalizing_at=func.now(),
        expires_at=_MIDNIGHT,
        lease_until=_MIDNIGHT,
    )
    .on_conflict_do_nothing()
    .returning(_BATCHES.c.id)
)


def open_today(session: Session, name: str, columns: Mapping[str, Any]) -> UUID:
    """The id of today's ledger of this name, created if there is none.

    `columns`: of the new batch, with its `id`. Its `account_id` and `livemode` are those of the
    ledger.
    """
    owner = {key: columns[key] for key in ("account_id", "livemode")}
    while True:
        found: UUID | None = session.scalar(_FIND, {"name": name, **owner})
        if found is not None:
            return found
        # For `has_line`: until this transaction ends, nobody else sees a row that could be locked.
        session.execute(_LOCK_NEW, {"ledger": columns["id"].hex})
        created: UUID | None = session.scalar(_CREATE, {"name": name, **columns})
        if created is not None:
            session.execute(
                insert(_TASKS).values(
                    batch_id=created,
                    seq=SEQ,
                    model=columns["model"],
                    state=TaskState.RUNNING.value,
                    lines=0,
                    line_index=b"",
                    fence=FENCE,
                )
            )
            return created


def add_lines(session: Session, ledger: UUID, lines: int, counts: Mapping[str, Any]) -> int | None:
    """Add lines and their counts to a ledger that is open; the number of the last line.

    None, and nothing is written: its day is over.
    """
    added = {f"added_{name}": counts[name] for name in _ADDED}
    values = {"own_batch_id": ledger, "added_lines": lines, **added}
    last: int | None = session.scalar(_ADD, values)
    return last


# The counters that a successful line moves.
_ADDED = (
    "completed",
    *TOKEN_COUNTERS,
    "summed",
    "charged",
    "counted_input_tokens",
    "counted_output_tokens",
)
_IS_OPEN = (
    select(_BATCHES.c.expires_at > func.now())
    .where(_BATCHES.c.id == _TASKS.c.batch_id)
    .scalar_subquery()
)
_ADD = (
    update(_TASKS)
    .where(
        _TASKS.c.batch_id == bindparam("own_batch_id"),
        _TASKS.c.seq == SEQ,
        _TASKS.c.fence == FENCE,
        _TASKS.c.state == TaskState.RUNNING.value,
        _IS_OPEN,
    )
    .values(
        {
            name: _TASKS.c[name] + bindparam(f"added_{name}", type_=_TASKS.c[name].type)
            for name in ("lines", *_ADDED)
        }
    )
    .returning(_TASKS.c.lines)
)


def has_line(session: Session, ledger: UUID, after: int, custom_id: str) -> bool:
    """Whether a line behind number `after` has this id, once open transactions have ended.

    The locks wait for a transaction whose COMMIT is still under way, also for the one that creates
    the ledger; the statement after them sees its lines.
    """
    session.execute(_LOCK_NEW, {"ledger": ledger.hex})
    session.execute(_LOCK, {"own_batch_id": ledger})
    found = session.scalar(_WITH_ID, {"own_batch_id": ledger, "after": after, "id": custom_id})
    return found is not None


_LOCK_NEW = select(func.pg_advisory_xact_lock(LOCK, func.hashtext(bindparam("ledger", type_=Text))))
_LOCK = (
    select(_TASKS.c.seq)
    .where(_TASKS.c.batch_id == bindparam("own_batch_id"), _TASKS.c.seq == SEQ)
    .with_for_update()
)
_WITH_ID = select(_RESULTS.c.line_no).where(
    _RESULTS.c.batch_id == bindparam("own_batch_id"),
    _RESULTS.c.line_no > bindparam("after"),
    _RESULTS.c.custom_id == bindparam("id"),
)


def close(session: Session, batch: Batch) -> bool:
    """End the task of a ledger whose day is over, and fix its total. False: the day is not over.

    The caller has locked the batch.
    """
    lines = session.scalar(
        update(_TASKS)
        .where(
            _TASKS.c.batch_id == batch.id,
            _TASKS.c.seq == SEQ,
            _TASKS.c.state == TaskState.RUNNING.value,
            ~_IS_OPEN,
        )
        .values(state=TaskState.DONE.value, fence=FENCE + 1)
        .returning(_TASKS.c.lines)
    )
    if lines is None:
        return False
    batch.total = lines
    session.flush()
    return True
