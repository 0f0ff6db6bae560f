"""Tasks: slices of a batch's lines that one worker runs, leased with a fence."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import CheckConstraint, Float, ForeignKey, Index, column, func, select, text, tuple_, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from xalen_batch import jsonl
from xalen_batch.models.base import Base
from xalen_batch.models.batches import Batch, window_is_open
from xalen_batch.states import TaskState


class Task(Base):
    """`fence` grows by one on every claim; whoever writes with an older one is stale and writes nothing.

    The counters move in the transaction that inserts the results they count, so a batch's
    progress is the sum over its tasks, and no row is fought over by all workers.
    """

    __tablename__ = "tasks"
    __table_args__ = (
        Index("ix_tasks_pending", "batch_id", "seq", postgresql_where=text("state = 'pending'")),
        Index("ix_tasks_running", "lease_until", postgresql_where=text("state = 'running'")),
        CheckConstraint("completed + failed <= lines", name="counts"),
        # Room for the counters to move in place (HOT).
        {"postgresql_with": {"fillfactor": "70"}},
    )

    batch_id: Mapped[UUID] = mapped_column(ForeignKey("batches.id"), primary_key=True)
    # The place of its first line in the order in which the batch's lines run, from 0: where a task is cut in
    # two, the second part has a place of its own.
    seq: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=TaskState.PENDING.value)
    lines: Mapped[int]
    # (line number, byte offset, length) of each line, as `jsonl.pack` makes it.
    line_index: Mapped[bytes]

    fence: Mapped[int] = mapped_column(server_default="0")
    lease_until: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    worker: Mapped[str | None]
    # Claims so far, and how many of them ended with a lost worker.
    attempts: Mapped[int] = mapped_column(server_default="0")
    losses: Mapped[int] = mapped_column(server_default="0")

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


# A task whose worker was lost this often is cut into single lines, of which each process runs one at
# a time; a single line that is lost once more fails alone, so that a poison line spares its neighbours.
SUSPECT_LOSSES = 2

_OPEN_FOR = column("open_for", Float)
_CLAIM = text(
    """
    WITH lanes AS MATERIALIZED (
        SELECT * FROM unnest(CAST(:models AS text[]), CAST(:modes AS bool[]), CAST(:rooms AS int[])) AS l (model, livemode, room)
    ), candidates AS MATERIALIZED (
        -- Few rows (batches that run now), in the order of fairness; the lateral join below stops
        -- at the first that has a task to give.
        SELECT b.id, b.account_id, b.livemode
        FROM batches b JOIN accounts a ON a.id = b.account_id
        WHERE b.status = 'in_progress' AND b.expires_at > now()
          AND (b.window_closes_at IS NULL OR (b.window_opens_at <= now() AND now() < b.window_closes_at))
        ORDER BY a.virtual_time, b.expires_at, b.id
    ), picked AS (
        SELECT t.*, c.account_id,
               -- Lines that have a result are counted in their own task, so such a one is taken whole.
               CASE WHEN t.completed + t.failed > 0 THEN t.lines
                    ELSE LEAST(t.lines, COALESCE((SELECT room FROM lanes l WHERE l.model = t.model AND l.livemode = c.livemode), CAST(:room AS int)))
               END AS taken
        FROM candidates c CROSS JOIN LATERAL (
            SELECT * FROM tasks t
            WHERE t.batch_id = c.id AND t.state = 'pending'
              AND (t.not_before IS NULL OR t.not_before <= now())
              AND NOT EXISTS (SELECT FROM lanes l WHERE l.model = t.model AND l.livemode = c.livemode AND l.room = 0)
              AND (t.losses < :suspect OR :with_suspects)
            ORDER BY t.seq LIMIT 1
            FOR UPDATE OF t SKIP LOCKED
        ) t
        LIMIT 1
    ), served AS (
        UPDATE accounts a SET virtual_time = a.virtual_time + p.taken::float / a.weight
        FROM picked p WHERE a.id = p.account_id
    ), rest AS (
        INSERT INTO tasks (batch_id, seq, model, lines, line_index, losses)
        SELECT batch_id, seq + taken, model, lines - taken, substring(line_index FROM CAST(:span * taken + 1 AS int)), losses
        FROM picked WHERE taken < lines
    )
    UPDATE tasks t
    SET state = 'running', fence = t.fence + 1, attempts = t.attempts + 1, not_before = NULL, worker = :worker,
        lease_until = clock_timestamp() + make_interval(secs => :lease),
        lines = p.taken, line_index = substring(t.line_index FROM 1 FOR CAST(:span * p.taken AS int))
    FROM picked p WHERE t.batch_id = p.batch_id AND t.seq = p.seq
    -- The interval that was looked at above: one statement sees one state, though another may just have been put in its place.
    RETURNING t.*, EXTRACT(EPOCH FROM (SELECT b.window_closes_at FROM batches b WHERE b.id = t.batch_id) - now())::float AS open_for
    """
).columns(*Task.__table__.columns, _OPEN_FOR)


def claim(
    session: Session, *, worker: str, lease: float, rooms: Mapping[tuple[str, bool], int], room: int, with_suspects: bool
) -> tuple[Task, float | None] | None:
    """Pending → running for the fair next task whose lane has room here. None: there is none.

    `rooms`: lines that each lane of this worker has room for, `room`: that of a lane that is not there yet.
    Of a task with more lines than that the first are taken; the others become a task of their own, in their place.
    With it comes for how many seconds its batch's execution window is open, from the moment at which this
    transaction began; null where there is no window.
    """
    statement = select(Task, _OPEN_FOR).from_statement(_CLAIM).execution_options(populate_existing=True)
    row = session.execute(
        statement,
        {
            "worker": worker,
            "lease": lease,
            "models": [model for model, _ in rooms],
            "modes": [is_live for _, is_live in rooms],
            "rooms": list(rooms.values()),
            "room": room,
            "span": jsonl.SPAN_BYTES,
            "suspect": SUSPECT_LOSSES,
            "with_suspects": with_suspects,
        },
    ).one_or_none()
    return None if row is None else (row[0], row[1])


class Standing(NamedTuple):
    """How a task's batch stands: its status, and whether its execution window is open."""

    status: str
    is_open: bool


def advance(
    session: Session, key: tuple[UUID, int], fence: int, *, to: TaskState, lease: float, pause: float | None, counts: Mapping[str, int]
) -> Standing | None:
    """Running → `to` (running again: extend the lease) with counters moved, if the fence still holds.

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
    """Running → pending for tasks whose lease ran out; each has lost a worker once more."""
    lost = (
        select(Task.batch_id, Task.seq)
        .where(Task.state == TaskState.RUNNING, Task.lease_until < func.now())
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return session.scalars(
        update(Task)
        .where(tuple_(Task.batch_id, Task.seq).in_(lost))
        .values(state=TaskState.PENDING, lease_until=None, losses=Task.losses + 1, fence=Task.fence + 1)
        .returning(Task)
        .execution_options(synchronize_session=False, populate_existing=True)
    ).all()


def end(session: Session, task: Task, counts: Mapping[str, int]) -> bool:
    """Pending → done for a task that no worker will run. False: a worker got it first."""
    row = session.execute(
        update(Task)
        .where(Task.batch_id == task.batch_id, Task.seq == task.seq, Task.fence == task.fence, Task.state == TaskState.PENDING)
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
