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
    Select,
    TextClause,
    bindparam,
    case,
    func,
    literal_column,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, Session, mapped_column

from xalen_batch.models.base import Base
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


def has_state(*states: TaskState) -> ColumnElement[bool]:
    """Whether a task is in one of these states.

    Literals instead of bound values: only then can the planner prove that it may use the partial
    index `ix_tasks_open`.
    """
    return Task.state.in_([literal_column(f"'{state.value}'") for state in states])


def has_any(session: Session, batch_id: UUID, *states: TaskState) -> bool:
    """Whether a batch has a task in one of these states."""
    return bool(session.scalar(_has_any(states), {"batch_id": batch_id}))


@cache
def _has_any(states: tuple[TaskState, ...]) -> Select[bool]:
    return select(
        select(Task.seq).where(Task.batch_id == bindparam("batch_id"), has_state(*states)).exists()
    )


# Adds the requests of each reason, {reason: requests}, to those of the task.
_NOT_BILLED_ADDED = text("""(
    SELECT jsonb_object_agg(reason, requests) FROM (
        SELECT key AS reason, sum(value::bigint) AS requests
        FROM (
            SELECT * FROM jsonb_each_text(coalesce(tasks.not_billed, '{}'))
            UNION ALL SELECT * FROM jsonb_each_text(:not_billed_added)
        ) AS each
        GROUP BY key
    ) AS reasons
)""").bindparams(bindparam("not_billed_added", type_=JSONB))


def _added(counts: Mapping[str, Any]) -> dict[str, ColumnElement[Any] | TextClause]:
    """The values of an UPDATE that adds `counts` to a task's counters and sums."""
    added: dict[str, ColumnElement[Any] | TextClause] = {
        name: getattr(Task, name) + amount
        for name, amount in counts.items()
        if name != "not_billed"
    }
    if counts.get("not_billed"):
        added["not_billed"] = _NOT_BILLED_ADDED.bindparams(not_billed_added=counts["not_billed"])
    return added


class BatchState(NamedTuple):
    """The status of a task's batch, and whether its execution window is open."""

    status: str
    is_open: bool


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
    is_running = to is TaskState.RUNNING
    row = session.execute(
        update(Task)
        .where(
            Task.batch_id == key[0],
            Task.seq == key[1],
            Task.fence == fence,
            Task.state == TaskState.RUNNING,
            Batch.id == Task.batch_id,
        )
        .values(
            state=to,
            lease_until=func.clock_timestamp() + timedelta(seconds=lease) if is_running else None,
            not_before=None if pause is None else func.clock_timestamp() + timedelta(seconds=pause),
            **_added(counts),
        )
        .returning(Batch.status, window_is_open())
        .execution_options(synchronize_session=False)
    ).one_or_none()
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
    row = session.execute(
        update(Task)
        .where(
            Task.batch_id == task.batch_id,
            Task.seq == task.seq,
            Task.fence == task.fence,
            Task.state == TaskState.PENDING,
        )
        .values(
            state=TaskState.DONE,
            fence=Task.fence + 1,
            not_before=None,
            **_added(counts),
        )
        .returning(Task.seq)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return row is not None
