"""Tasks: slices of a batch's lines that one worker runs, leased with a fence."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch.models.base import Base
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
