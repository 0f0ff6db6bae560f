"""Batches, and the guarded move from one status to the next."""

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    UniqueConstraint,
    and_,
    func,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.orm import Mapped, Session, mapped_column

from xalen_batch.models.base import Base
from xalen_batch.states import BATCH_MOVES, BatchStatus

# A batch that has not ended. Written out, not bound: the planner proves from it that a partial
# index will do.
OPEN = "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"


class Batch(Base):
    __tablename__ = "batches"
    __table_args__ = (
        # What invoices and output files point at: a test batch can never carry live money.
        UniqueConstraint("id", "account_id", "livemode"),
        # Whatever a batch points at is of its own account and mode.
        *(
            ForeignKeyConstraint(
                [column, "account_id", "livemode"],
                [f"{table}.id", f"{table}.account_id", f"{table}.livemode"],
            )
            for column, table in (
                ("input_file_id", "files"),
                ("output_file_id", "files"),
                ("error_file_id", "files"),
                ("schedule_id", "schedules"),
            )
        ),
        ForeignKeyConstraint(
            ["run_id", "schedule_id"], ["schedule_runs.id", "schedule_runs.schedule_id"]
        ),
        Index("ix_batches_account_id_livemode_id", "account_id", "livemode", "id"),
        Index(
            "ix_batches_open",
            "status",
            "expires_at",
            postgresql_where=text(OPEN),
        ),
        # What quotas count.
        Index(
            "ix_batches_account_id_livemode_open",
            "account_id",
            "livemode",
            postgresql_where=text(OPEN),
        ),
        # What a claim looks through (models/next_task.py): queues, and in each its batches by their
        # deadlines.
        Index(
            "ix_batches_claimable",
            "account_id",
            "livemode",
            text("coalesce(model, '')"),
            "expires_at",
            "id",
            postgresql_where=text("status = 'in_progress'"),
        ),
        Index(
            "ix_batches_window_closes_at",
            "window_closes_at",
            postgresql_where=text(
                "status IN ('validating', 'in_progress') AND window_closes_at IS NOT NULL"
            ),
        ),
        Index("ix_batches_input_file_id", "input_file_id"),
        Index(
            "ix_batches_schedule_id_id",
            "schedule_id",
            "id",
            postgresql_where=text("schedule_id IS NOT NULL"),
        ),
        CheckConstraint(
            "(execution_window IS NULL) = (window_closes_at IS NULL)", name="execution_window"
        ),
        CheckConstraint("discount_rate >= 0 AND discount_rate <= 1", name="discount_rate"),
        CheckConstraint("completed + failed <= total", name="counts"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    livemode: Mapped[bool]
    endpoint: Mapped[str]
    completion_window: Mapped[str]
    status: Mapped[str] = mapped_column(server_default=BatchStatus.VALIDATING.value)
    input_file_id: Mapped[UUID]
    output_file_id: Mapped[UUID | None]
    error_file_id: Mapped[UUID | None]
    output_expires_after: Mapped[int | None]
    # The one model all lines name; null while unknown, and where lines name several.
    model: Mapped[str | None]
    # What an invalid line does: "fail" the batch before anything runs, or "skip": it ends in the
    # error file, and the others run.
    on_invalid: Mapped[str] = mapped_column(server_default="fail")
    meta: Mapped[dict[str, str]] = mapped_column("metadata", server_default=text("'{}'"))
    errors: Mapped[list[dict[str, Any]] | None]

    # What made it; null for a batch that a caller made.
    schedule_id: Mapped[UUID | None]
    run_id: Mapped[UUID | None] = mapped_column(unique=True)
    # Hours in which its lines may be started, a `windows.ExecutionWindow` as JSON; and the interval
    # of them that is open now or opens next.
    execution_window: Mapped[dict[str, Any] | None]
    window_opens_at: Mapped[datetime | None]
    window_closes_at: Mapped[datetime | None]

    # Frozen at creation: {model: {component: "USD per million tokens"}}; no key, no price.
    price_snapshot: Mapped[dict[str, Any]]
    discount_rate: Mapped[Decimal]
    # Frozen too: {model: "openai" or "simulated"}, what its lines are sent to; a model that is not
    # in it is refused. Null in test mode, where every model is simulated, and in batches from
    # before this column.
    backends: Mapped[dict[str, str] | None]

    # Of all its lines, as quotas count them; 0 until it is validated.
    enqueued_tokens: Mapped[int] = mapped_column(server_default="0")

    # Fixed at the end; while the batch runs, its tasks hold the counts.
    total: Mapped[int] = mapped_column(server_default="0")
    completed: Mapped[int] = mapped_column(server_default="0")
    # While it runs: the invalid lines that were skipped, which no quota counts.
    failed: Mapped[int] = mapped_column(server_default="0")
    # Lines that nobody ran before the batch was cancelled or expired. Null before the batch ends,
    # and in batches that ended before these columns, whose `failed` includes them.
    cancelled: Mapped[int | None]
    expired: Mapped[int | None]
    input_tokens: Mapped[int] = mapped_column(server_default="0")
    cached_tokens: Mapped[int] = mapped_column(server_default="0")
    output_tokens: Mapped[int] = mapped_column(server_default="0")
    reasoning_tokens: Mapped[int] = mapped_column(server_default="0")
    # Of the billed tokens, those that we counted ourselves; null before the batch ends, and where
    # it ended before they were noted.
    counted_input_tokens: Mapped[int | None]
    counted_output_tokens: Mapped[int | None]

    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    in_progress_at: Mapped[datetime | None]
    finalizing_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    expired_at: Mapped[datetime | None]
    cancelling_at: Mapped[datetime | None]
    cancelled_at: Mapped[datetime | None]

    # Who validates or finalizes it, until when (as tasks have, for the steps of a whole batch).
    fence: Mapped[int] = mapped_column(server_default="0")
    lease_until: Mapped[datetime | None]
    # Workers that began to validate it and were not heard of again; the one that is at it now is
    # among them.
    losses: Mapped[int] = mapped_column(server_default="0")

    def backend_of(self, model: str) -> str | None:
        """What the lines of a model are sent to: "openai" or "simulated".

        None: the batch may not name it.
        """
        if not self.livemode:
            return "simulated"
        return "openai" if self.backends is None else self.backends.get(model)

    def move(self, session: Session, to: BatchStatus) -> bool:
        """Move this batch on from the status it was read with. False: someone else moved it first.

        Raises ValueError for a move that the table of moves does not have: that is a bug of ours.
        """
        source = BatchStatus(self.status)
        if to not in BATCH_MOVES[source]:
            raise ValueError(f"a batch does not go from {source} to {to}")
        session.flush()
        # Who starts to finalize goes on under the lease of its own; every other move ends a lease.
        lease_end = Batch.lease_until if to is BatchStatus.FINALIZING else None
        row = session.execute(
            update(Batch)
            .where(Batch.id == self.id, Batch.status == source)
            .values({"status": to.value, f"{to.value}_at": func.now(), "lease_until": lease_end})
            .returning(Batch.id)
            .execution_options(synchronize_session=False)
        ).one_or_none()
        if row is None:
            return False
        session.refresh(self)
        return True


def window_is_open() -> ColumnElement[bool]:
    """Whether a batch's lines may be started at this moment, by PostgreSQL's clock; always where
    there is no execution window.
    """
    return or_(
        Batch.window_closes_at.is_(None),
        and_(Batch.window_opens_at <= func.now(), func.now() < Batch.window_closes_at),
    )


def roll_window(
    session: Session,
    batch_id: UUID,
    *,
    closed_at: datetime,
    opens_at: datetime,
    closes_at: datetime,
) -> bool:
    """Put the next interval in the place of the one that closed.

    False: someone else did, or has the row now.
    """
    # Never waits for a row: who rolls several would otherwise have to take them in the order of
    # everyone else.
    free = (
        select(Batch.id)
        .where(Batch.id == batch_id, Batch.window_closes_at == closed_at)
        .with_for_update(skip_locked=True, key_share=True)
    )
    row = session.execute(
        update(Batch)
        .where(Batch.id == free.scalar_subquery())
        .values(window_opens_at=opens_at, window_closes_at=closes_at)
        .returning(Batch.id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return row is not None
