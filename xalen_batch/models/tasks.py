"""Tasks: slices of a batch's lines that one worker runs, leased with a fence."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    Index,
    case,
    func,
    literal_column,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.orm import Mapped, Session, mapped_column

from xalen_batch.models.base import Base
from xalen_batch.models.batches import Batch, window_is_open
from xalen_batch.states import TaskState


class Task(Base):
    """`fence` grows by one on every claim; whoever writes with an older one is stale and writes
    nothing.

    The counters move in the transaction that inserts the results they count, so a batch's
    progress is the sum over its tasks, and no row is fought over by all workers.
    """

    __tablename__ = "tasks"
    __table_args__ = (
        # What waits and what runs, and nothing of the many that are done. No column that moves
        # while a task runs is in any index, so the counters and the lease move in place (HOT).
        Index(
            "ix_tasks_open",
            "state",
            "batch_id",
            "model",
            "seq",
            postgresql_where=text("state <> 'done'"),
        ),
        CheckConstraint("completed + failed <= lines", name="counts"),
        # Room on the page for that.
        {"postgresql_with": {"fillfactor": "70"}},
    )

    batch_id: Mapped[UUID] = mapped_column(ForeignKey("batches.id"), primary_key=True)
    # The place of its first line in the order in which the batch's lines run, from 0: where a task
    # is cut in two, the second part has a place of its own.
    seq: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=TaskState.PENDING.value)
    lines: Mapped[int]
    # (line number, byte offset, length) of each line, as `jsonl.pack` makes it; stored as it is
    # (migration 0008).
    line_index: Mapped[bytes]

    fence: Mapped[int] = mapped_column(server_default="0")
    lease_until: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    worker: Mapped[str | None]
    # Claims so far, and how many of them ended with a lost worker (of a suspect: with one that ran
    # nothing else).
    attempts: Mapped[int] = mapped_column(server_default="0")
    losses: Mapped[int] = mapped_column(server_default="0")

    # Of a task that is done, lines in neither were run by nobody: their batch was cancelled or
    # expired.
    completed: Mapped[int] = mapped_column(server_default="0")
    failed: Mapped[int] = mapped_column(server_default="0")
    input_tokens: Mapped[int] = mapped_column(server_default="0")
    cached_tokens: Mapped[int] = mapped_column(server_default="0")
    output_tokens: Mapped[int] = mapped_column(server_default="0")
    reasoning_tokens: Mapped[int] = mapped_column(server_default="0")
    output_bytes: Mapped[int] = mapped_column(server_default="0")
    error_bytes: Mapped[int] = mapped_column(server_default="0")

    @property
    def key(self) -> tuple[UUID, int]:
        return self.batch_id, self.seq


# Token counters of a line, and their sums: columns of results, tasks and batches, and fields of
# `backends.contract.Usage`.
TOKEN_COUNTERS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")

# A task whose worker was lost this often is suspect: a process runs it with nothing beside it, so
# that a poison line spares its neighbours (pipeline/poison.py). From then on `losses` is raised
# before it is run, and lowered when the worker lives to hand it back.
SUSPECT_LOSSES = 2


def has_state(*states: TaskState) -> ColumnElement[bool]:
    """Whether a task is in one of these states.

    Written out, not bound: the planner proves from it that `ix_tasks_open` will do.
    """
    return Task.state.in_([literal_column(f"'{state.value}'") for state in states])


def has_any(session: Session, batch_id: UUID, *states: TaskState) -> bool:
    """Whether a batch has a task in one of these states."""
    return bool(
        session.scalar(
            select(select(Task.seq).where(Task.batch_id == batch_id, has_state(*states)).exists())
        )
    )


class Standing(NamedTuple):
    """How a task's batch stands: its status, and whether its execution window is open."""

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
    counts: Mapping[str, int],
) -> Standing | None:
    """Running → `to` (running again: extend the lease) with counters moved, if the fence still
    holds.

    `pause`: seconds until a task handed back may be claimed again. None: the fence is stale
    and nothing was written.
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
            **{name: getattr(Task, name) + amount for name, amount in counts.items()},
        )
        .returning(Batch.status, window_is_open())
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return None if row is None else Standing(*row)


def reclaim(session: Session, limit: int = 100) -> Sequence[Task]:
    """Running → pending for tasks whose lease ran out.

    Each has lost a worker once more; of a suspect that is on record if it was run.
    """
    losses = case((Task.losses < SUSPECT_LOSSES, Task.losses + 1), else_=Task.losses)
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


def end(session: Session, task: Task, counts: Mapping[str, int]) -> bool:
    """Pending → done for a task that no worker will run. False: a worker got it first."""
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
            **{name: getattr(Task, name) + amount for name, amount in counts.items()},
        )
        .returning(Task.seq)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return row is not None
