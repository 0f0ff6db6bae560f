"""Batches, and the guarded move from one status to the next."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Text,
    UniqueConstraint,
    and_,
    bindparam,
    func,
    literal_column,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.orm import Mapped, Session, mapped_column
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.sql.dml import ReturningUpdate

from xalen_batch.models.base import Base, table_of
from xalen_batch.states import BATCH_MOVES, BatchStatus

# The condition of a batch that has not ended. Literals instead of bound values: only then can the
# planner prove that the query implies the predicate of a partial index.
OPEN = "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"

# The condition of a batch whose lines are rows of `results`; a failed batch has none.
UNSEALED = "sealed_at IS NULL AND status <> 'failed'"

# The condition of a batch that lists show.
LISTED = "ledger IS NULL AND call IS NULL"


class Batch(Base):
    __tablename__ = "batches"
    __table_args__ = (
        # Target of foreign keys of invoices and output files: they have the batch's account and
        # mode, so a test batch never carries live money.
        UniqueConstraint("id", "account_id", "livemode"),
        # Files and schedules that a batch refers to have its account and mode.
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
        # A retry has the account and mode of the batch whose lines it runs again.
        ForeignKeyConstraint(
            ["retry_of", "account_id", "livemode"],
            ["batches.id", "batches.account_id", "batches.livemode"],
        ),
        Index("ix_batches_account_id_livemode_id", "account_id", "livemode", "id"),
        # Lists with filters (batches/lists.py): ids by what the index holds of each batch.
        Index(
            "ix_batches_listed",
            "account_id",
            "livemode",
            "id",
            postgresql_include=["status", "model", "endpoint", "created_at"],
            postgresql_where=text(LISTED),
        ),
        Index(
            "ix_batches_listed_by_status",
            "account_id",
            "livemode",
            "status",
            "id",
            postgresql_include=["model", "endpoint", "created_at"],
            postgresql_where=text(LISTED),
        ),
        Index(
            "ix_batches_open",
            "status",
            "expires_at",
            postgresql_where=text(OPEN),
        ),
        # For quotas.
        Index(
            "ix_batches_account_id_livemode_open",
            "account_id",
            "livemode",
            postgresql_where=text(OPEN),
        ),
        # For claims (models/next_task.py): the queues, and the batches of each by deadline.
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
            "uq_batches_ledger",
            "account_id",
            "livemode",
            "ledger",
            unique=True,
            postgresql_where=text("ledger IS NOT NULL"),
        ),
        # Batches with rows in `results`: those to seal, and those that still run.
        Index(
            "ix_batches_unsealed",
            "id",
            postgresql_where=text(UNSEALED),
        ),
        Index(
            "ix_batches_schedule_id_id",
            "schedule_id",
            "id",
            postgresql_where=text("schedule_id IS NOT NULL"),
        ),
        Index(
            "ix_batches_retry_of",
            "retry_of",
            "id",
            postgresql_where=text("retry_of IS NOT NULL"),
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
    # Null only in a ledger, which no job reads.
    input_file_id: Mapped[UUID] = mapped_column(nullable=True)
    output_file_id: Mapped[UUID | None]
    error_file_id: Mapped[UUID | None]
    output_expires_after: Mapped[int | None]
    # The model that all lines name; null before validation, and if lines name several.
    model: Mapped[str | None]
    # `states.OnInvalid`: invalid lines fail the batch, or are skipped and end in the error file.
    on_invalid: Mapped[str] = mapped_column(server_default="fail")
    meta: Mapped[dict[str, str]] = mapped_column("metadata", server_default=text("'{}'"))
    errors: Mapped[list[dict[str, Any]] | None]

    # The name of a ledger (models/ledgers.py); null in any other batch.
    ledger: Mapped[str | None]
    # `states.QueuedCall` of a batch of one queued call; null in any other batch.
    call: Mapped[str | None]

    # Requests of a message batch (`api/anthropic`), which is told them before validation counts
    # lines; null in any other batch.
    requests: Mapped[int | None]
    # When a client of Anthropic's API deleted it. That view no longer shows it; others do, as it
    # has an invoice.
    deleted_at: Mapped[datetime | None]

    # The schedule's run that created it; null for a batch that a caller created.
    schedule_id: Mapped[UUID | None]
    run_id: Mapped[UUID | None] = mapped_column(unique=True)
    # The batch whose failed lines this one runs again, and the reasons for which they had failed
    # (`batches/failed_lines.py`); null in any other batch.
    retry_of: Mapped[UUID | None]
    retry_codes: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    # `windows.ExecutionWindow` as JSON: the hours in which lines may start. `window_…_at`: its
    # interval that is open now or opens next.
    execution_window: Mapped[dict[str, Any] | None]
    window_opens_at: Mapped[datetime | None]
    window_closes_at: Mapped[datetime | None]

    # Frozen at creation: {model: {component: "USD per million tokens"}}. A component without a key
    # has no price.
    price_snapshot: Mapped[dict[str, Any]]
    discount_rate: Mapped[Decimal]
    # Frozen at creation: {model: "openai" or "simulated"}, the kind of backend. Lines that name
    # another model are refused. Null in test mode, where every model is simulated, and in batches
    # older than this column.
    backends: Mapped[dict[str, str] | None]

    # Estimated input tokens of all lines, for quotas; 0 until the batch is validated.
    enqueued_tokens: Mapped[int] = mapped_column(server_default="0")

    # Fixed when the batch ends; while it runs, its tasks hold the counts.
    total: Mapped[int] = mapped_column(server_default="0")
    completed: Mapped[int] = mapped_column(server_default="0")
    # While the batch runs: the number of skipped invalid lines, which quotas do not count.
    failed: Mapped[int] = mapped_column(server_default="0")
    # Lines that were not run before the batch was cancelled or expired. Null before the batch ends,
    # and in batches that ended before these columns existed: their `failed` includes these lines.
    cancelled: Mapped[int | None]
    expired: Mapped[int | None]
    input_tokens: Mapped[int] = mapped_column(server_default="0")
    cached_tokens: Mapped[int] = mapped_column(server_default="0")
    output_tokens: Mapped[int] = mapped_column(server_default="0")
    reasoning_tokens: Mapped[int] = mapped_column(server_default="0")
    # Billed tokens that xalen-batch counted because the backend reported no usable usage. Null
    # before the batch ends, and in batches that ended before these columns existed.
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
    # Null while the lines are read from `results`; then from objects and `sealed_lines`.
    sealed_at: Mapped[datetime | None]

    # Lease and fence of the worker that validates, finalizes or seals the batch, as on a task.
    fence: Mapped[int] = mapped_column(server_default="0")
    lease_until: Mapped[datetime | None]
    # Worker crashes during validation. A worker counts its own crash when it begins, and takes it
    # back if it fails without crashing.
    losses: Mapped[int] = mapped_column(server_default="0")

    def backend_of(self, model: str) -> str | None:
        """The kind of a model's backend, "openai" or "simulated"; None: the model is refused."""
        return backend_of(model, livemode=self.livemode, backends=self.backends)

    def move(
        self, session: Session, *path: BatchStatus, fence: int | None = None, **values: Any
    ) -> bool:
        """Move this batch along `path` from the status it was read with, by a guarded UPDATE.

        `fence`: the fence that the batch must have; None: any. `values`: columns that change with
        it. False: another transaction moved it first, and nothing is written. Raises ValueError for
        a move that BATCH_MOVES does not have, which is a bug of ours.
        """
        source = status = BatchStatus(self.status)
        for to in path:
            if to not in BATCH_MOVES[status]:
                raise ValueError(f"a batch does not go from {status} to {to}")
            status = to
        session.flush()
        row = session.execute(
            _moved(path),
            {"own_id": self.id, "source": source.value, "own_fence": fence, **values},
        ).one_or_none()
        if row is None:
            return False
        for name, value in zip(_ATTRIBUTES, row, strict=True):
            set_committed_value(self, name, value)
        return True


def backend_of(model: str, *, livemode: bool, backends: Mapping[str, str] | None) -> str | None:
    """As `Batch.backend_of`, for a batch with these columns."""
    if not livemode:
        return "simulated"
    return "openai" if backends is None else backends.get(model)


_TABLE = table_of(Batch)
_ATTRIBUTES = [Batch.__mapper__.get_property_by_column(column).key for column in _TABLE.columns]


_OWN_FENCE = bindparam("own_fence", type_=BigInteger)


# Cached, since building a statement takes longer than running it.
@cache
def _moved(path: tuple[BatchStatus, ...]) -> ReturningUpdate[Any]:
    """The guarded UPDATE of `Batch.move`, to which SQLAlchemy adds the columns of `values`."""
    changed: dict[str, Any] = {f"{to.value}_at": func.now() for to in path}
    # The worker that starts to finalize keeps its lease; every other move ends the lease.
    if path[-1] is not BatchStatus.FINALIZING:
        changed["lease_until"] = null()
    return (
        update(_TABLE)
        .where(
            _TABLE.c.id == bindparam("own_id"),
            _TABLE.c.status == bindparam("source"),
            _TABLE.c.fence
            == func.coalesce(bindparam("own_fence", type_=BigInteger), _TABLE.c.fence),
        )
        .values(status=path[-1].value, **changed)
        .returning(*_TABLE.columns)
    )


def has_status(*statuses: BatchStatus) -> ColumnElement[bool]:
    """Whether a batch has one of these statuses.

    Literals instead of bound values, as in OPEN: with bound values, PostgreSQL uses a partial index
    only if it plans the query anew for the values of each execution.
    """
    return Batch.status.in_([literal_column(f"'{status.value}'") for status in statuses])


def window_is_open(columns: Any = Batch) -> ColumnElement[bool]:
    """Whether a batch's lines may start now, by PostgreSQL's clock.

    True for a batch without an execution window. `columns`: of the model or of its table.
    """
    return or_(
        columns.window_closes_at.is_(None),
        and_(columns.window_opens_at <= func.now(), func.now() < columns.window_closes_at),
    )


def roll_window(
    session: Session,
    batch_id: UUID,
    *,
    closed_at: datetime,
    opens_at: datetime,
    closes_at: datetime,
) -> bool:
    """Replace the execution interval that closed at `closed_at` by the next one.

    False: another transaction replaced it, or has locked the row.
    """
    # SKIP LOCKED: waiting could deadlock, since callers replace several intervals in a transaction.
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
