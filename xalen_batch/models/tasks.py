"""Tasks: slices of a batch's lines, each run by one worker under a lease and a fence."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    Index,
    Interval,
    Select,
    SQLColumnExpression,
    Update,
    bindparam,
    case,
    delete,
    func,
    literal,
    literal_column,
    null,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, Session, mapped_column
from sqlalchemy.sql.dml import ReturningUpdate

from xalen_batch.models.base import Base, table_of
from xalen_batch.models.batches import Batch, window_is_open
from xalen_batch.states import TaskState


class Task(Base):
    """Lines of one model in one batch.

    Every claim raises `fence` by one. A worker with a lower fence is stale, and its guarded UPDATE
    matches no row.

    The counters change in the transaction that inserts the results they count. A batch's progress
    is the sum over its tasks, so workers do not contend for the row of the batch.
    """

    __tablename__ = "tasks"
    __table_args__ = (
        # A partial index, without the many tasks that are done. No index has a column that changes
        # while a task runs, so updates of the counters and the lease are HOT updates.
        Index(
            "ix_tasks_open",
            "state",
            "batch_id",
            "model",
            "seq",
            postgresql_where=text("state <> 'done'"),
        ),
        CheckConstraint("completed + failed <= lines", name="counts"),
        # HOT updates need free space on the page.
        {"postgresql_with": {"fillfactor": "70"}},
    )

    batch_id: Mapped[UUID] = mapped_column(ForeignKey("batches.id"), primary_key=True)
    # The position, from 0, of its first line in the running order of the batch. A task owns every
    # position up to the next task, so the second half of a split task starts at `seq` + the lines
    # taken.
    seq: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=TaskState.PENDING.value)
    lines: Mapped[int]
    # (line number, byte offset, length) of each line, as `jsonl.pack` encodes it; not compressed
    # (migration 0008).
    line_index: Mapped[bytes]

    fence: Mapped[int] = mapped_column(server_default="0")
    lease_until: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    worker: Mapped[str | None]
    # Claims so far.
    attempts: Mapped[int] = mapped_column(server_default="0")
    # Worker crashes while the task ran; once it is suspect, only of workers that ran nothing else.
    losses: Mapped[int] = mapped_column(server_default="0")

    # Lines of a done task that count in neither were not run: the batch was cancelled or expired.
    completed: Mapped[int] = mapped_column(server_default="0")
    failed: Mapped[int] = mapped_column(server_default="0")
    input_tokens: Mapped[int] = mapped_column(server_default="0")
    cached_tokens: Mapped[int] = mapped_column(server_default="0")
    output_tokens: Mapped[int] = mapped_column(server_default="0")
    reasoning_tokens: Mapped[int] = mapped_column(server_default="0")
    output_bytes: Mapped[int] = mapped_column(server_default="0")
    error_bytes: Mapped[int] = mapped_column(server_default="0")

    # Sums for the invoice (billing/sums.py). `summed`: the number of results in them. Workers of a
    # version without these columns do not add their results.
    summed: Mapped[int] = mapped_column(server_default="0")
    charged: Mapped[Decimal] = mapped_column(server_default="0")
    # The part of the tokens that xalen-batch counted, since the backend reported no usable usage.
    counted_input_tokens: Mapped[int] = mapped_column(server_default="0")
    counted_output_tokens: Mapped[int] = mapped_column(server_default="0")
    # {reason: requests that ended for it without success}; null: all succeeded so far.
    not_billed: Mapped[dict[str, Any] | None]

    @property
    def key(self) -> tuple[UUID, int]:
        return self.batch_id, self.seq


# Token counters of a line, and their sums: columns of results, tasks and batches, and fields of
# `backends.contract.Usage`.
TOKEN_COUNTERS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")

# Worker crashes from which a task is suspect: a process runs it with nothing else in flight, so
# that a poison line harms no other task (pipeline/poison.py). From then on `losses` is raised
# before the task runs, and lowered when the worker survives and hands the task back.
SUSPECT_CRASHES = 2


# Tasks that one call of `forget` looks at.
FORGOTTEN_AT_ONCE = 1_000


def has_state(*states: TaskState) -> ColumnElement[bool]:
    """Whether a task is in one of these states.

    Literals instead of bound values: only then can the planner prove that it may use the partial
    index `ix_tasks_open`.
    """
    return _in_states(Task.state, *states)


def _in_states(column: SQLColumnExpression[str], *states: TaskState) -> ColumnElement[bool]:
    return column.in_([literal_column(f"'{state.value}'") for state in states])


def has_any(session: Session, batch_id: UUID, *states: TaskState) -> bool:
    """Whether a batch has a task in one of these states."""
    return bool(session.scalar(_has_any(states), {"batch_id": batch_id}))


@cache
def _has_any(states: tuple[TaskState, ...]) -> Select[bool]:
    return select(
        select(Task.seq).where(Task.batch_id == bindparam("batch_id"), has_state(*states)).exists()
    )


class BatchState(NamedTuple):
    """The state of a task's batch.

    `is_open`: its execution window is open. `has_open_tasks`: it has other tasks that have not
    ended, as committed when the task was advanced.
    """

    status: str
    is_open: bool
    has_open_tasks: bool


_TASKS, _BATCHES = table_of(Task).c, table_of(Batch).c
# Adds the requests of each reason, {reason: requests}, to those of the task.
_NOT_BILLED_ADDED = text("""(
    SELECT jsonb_object_agg(reason, requests) FROM (
        SELECT key AS reason, sum(value::bigint) AS requests
        FROM (
            SELECT * FROM jsonb_each_text(coalesce(tasks.not_billed, '{}'))
            UNION ALL SELECT * FROM jsonb_each_text(:added_not_billed)
        ) AS each
        GROUP BY key
    ) AS reasons
)""").bindparams(bindparam("added_not_billed", type_=JSONB))
_OTHERS = table_of(Task).alias("others").c
_HAS_OPEN_TASKS = (
    select(_OTHERS.seq)
    .where(
        _OTHERS.batch_id == _TASKS.batch_id,
        _OTHERS.seq != _TASKS.seq,
        _in_states(_OTHERS.state, TaskState.PENDING, TaskState.RUNNING),
    )
    .exists()
)


def _added(counts: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of an UPDATE that adds `counts` to a task's counters and sums."""
    return {f"added_{name}": amount for name, amount in counts.items() if amount is not None}


# Cached, since building a statement takes longer than running it.
@cache
def _changed(
    source: TaskState, to: TaskState, added: tuple[str, ...], *, is_paused: bool = False
) -> Update:
    """The guarded UPDATE of a task from one state to another, with the `added` parameters."""
    columns = [name.removeprefix("added_") for name in added]
    sums: dict[str, Any] = {
        name: _TASKS[name] + bindparam(f"added_{name}", type_=_TASKS[name].type)
        for name in columns
        if name != "not_billed"
    }
    if "not_billed" in columns:
        sums["not_billed"] = _NOT_BILLED_ADDED
    pause = func.clock_timestamp() + bindparam("pause", type_=Interval) if is_paused else null()
    return (
        update(table_of(Task))
        .where(
            _TASKS.batch_id == bindparam("own_batch_id"),
            _TASKS.seq == bindparam("own_seq"),
            _TASKS.fence == bindparam("own_fence"),
            _TASKS.state == source.value,
        )
        .values(state=to.value, not_before=pause, **sums)
    )


@cache
def _advanced(to: TaskState, added: tuple[str, ...], *, is_paused: bool) -> ReturningUpdate[Any]:
    """The UPDATE of `advance`."""
    lease_end = (
        func.clock_timestamp() + bindparam("lease", type_=Interval)
        if to is TaskState.RUNNING
        else null()
    )
    # Of a task that goes on, nobody asks for the others.
    has_open_tasks = literal(True) if to is TaskState.RUNNING else _HAS_OPEN_TASKS
    return (
        _changed(TaskState.RUNNING, to, added, is_paused=is_paused)
        .where(_BATCHES.id == _TASKS.batch_id)
        .values(lease_until=lease_end)
        .returning(_BATCHES.status, window_is_open(_BATCHES), has_open_tasks)
    )


@cache
def _ended(added: tuple[str, ...]) -> ReturningUpdate[Any]:
    """The UPDATE of `end`."""
    return (
        _changed(TaskState.PENDING, TaskState.DONE, added)
        .values(fence=_TASKS.fence + 1)
        .returning(_TASKS.seq)
    )


def advance(
    session: Session,
    key: tuple[UUID, int],
    fence: int,
    *,
    to: TaskState,
    lease: float,
    pause: float | None,
    counts: Mapping[str, Any],
) -> BatchState | None:
    """Move a running task to `to`, and add `counts` to its counters, if the fence still holds.

    To RUNNING: extend the lease by `lease` seconds. `pause`: seconds until a task that is handed
    back may be claimed again. Returns None, and writes nothing, if the fence is stale.
    """
    added = _added(counts)
    values = {"own_batch_id": key[0], "own_seq": key[1], "own_fence": fence, **added}
    if to is TaskState.RUNNING:
        values["lease"] = timedelta(seconds=lease)
    if pause is not None:
        values["pause"] = timedelta(seconds=pause)
    statement = _advanced(to, tuple(added), is_paused=pause is not None)
    row = session.execute(statement, values).one_or_none()
    return None if row is None else BatchState(*row)


def reclaim(session: Session, limit: int = 100) -> Sequence[Task]:
    """Move running tasks whose lease ran out to pending, and count a worker crash for each.

    The crash of a suspect's worker was counted before the task ran. SKIP LOCKED: concurrent callers
    get different tasks.
    """
    losses = case((Task.losses < SUSPECT_CRASHES, Task.losses + 1), else_=Task.losses)
    lost = (
        select(Task.batch_id, Task.seq)
        .where(has_state(TaskState.RUNNING), Task.lease_until < func.now())
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return session.scalars(
        update(Task)
        .where(tuple_(Task.batch_id, Task.seq).in_(lost))
        .values(state=TaskState.PENDING, lease_until=None, losses=losses, fence=Task.fence + 1)
        .returning(Task)
        .execution_options(synchronize_session=False, populate_existing=True)
    ).all()


def end(session: Session, task: Task, counts: Mapping[str, Any]) -> bool:
    """Move a pending task to done; no worker will run it. False: a worker claimed it first."""
    added = _added(counts)
    own = {"own_batch_id": task.batch_id, "own_seq": task.seq, "own_fence": task.fence}
    return session.execute(_ended(tuple(added)), own | added).one_or_none() is not None


def forget(
    session: Session, older_than: float, after: tuple[UUID, int] | None
) -> tuple[UUID, int] | None:
    """Delete tasks of sealed batches that were created at least `older_than` seconds ago.

    Looks at FORGOTTEN_AT_ONCE tasks behind the key `after`. Returns the last key, where the next
    call goes on, or None if no older task is left. Nothing reads the tasks of a sealed batch.
    """
    key = tuple_(Task.batch_id, Task.seq)
    old = (
        select(Task.batch_id, Task.seq, Batch.sealed_at)
        .join(Batch)
        .where(Task.batch_id < func.lowest_id(func.now() - timedelta(seconds=older_than)))
        .order_by(Task.batch_id, Task.seq)
        .limit(FORGOTTEN_AT_ONCE)
    )
    found = session.execute(old if after is None else old.where(key > after)).all()
    sealed = [(row.batch_id, row.seq) for row in found if row.sealed_at is not None]
    session.execute(
        delete(Task).where(key.in_(sealed)), execution_options={"synchronize_session": False}
    )
    return (found[-1].batch_id, found[-1].seq) if found else None
