"""webhooks: events, the endpoints that are told of them, and their deliveries"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

# Webhooks that a batch brings are a part of the batch. The sweep's deletion of rows that have no
# secret any more is not a change that an owner made.
AUDIT = """
CREATE TRIGGER audited AFTER INSERT OR UPDATE OF url, description, events, status, rotated_at, deleted_at
ON webhook_endpoints FOR EACH ROW WHEN (NEW.batch_id IS NULL)
EXECUTE FUNCTION write_audit('webhook', 'whe', 'url', 'description', 'events', 'status', 'disabled_reason', 'rotated_at', 'deleted_at')
"""
OWNER = ("account_id", "livemode")


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Uuid(), nullable=False),
        _time("created_at", server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sa.UniqueConstraint(*OWNER, "id", name=op.f("uq_events_account_id_livemode_id")),
    )
    op.create_index(
        "uq_events_object_id_type",
        "events",
        ["object_id", "type"],
        unique=True,
        postgresql_where=sa.text("type NOT LIKE 'xalen.webhook.%'"),
    )
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("batch_id", sa.Uuid(), nullable=True),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("events", postgresql.ARRAY(sa.Text()), nullable=True),
        sa.Column("status", sa.Text(), server_default="enabled", nullable=False),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("previous_secret", sa.Text(), nullable=True),
        _time("previous_secret_until"),
        _time("rotated_at"),
        _time("created_at", server_default=sa.func.now(), nullable=False),
        _time("deleted_at"),
        _time("last_delivery_at"),
        sa.Column("last_status_code", sa.BigInteger(), nullable=True),
        sa.Column("consecutive_failures", sa.BigInteger(), server_default="0", nullable=False),
        _time("failing_since"),
        _time("not_before"),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        _time("lease_until"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoints")),
        sa.UniqueConstraint(*OWNER, "id", name=op.f("uq_webhook_endpoints_account_id_livemode_id")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_webhook_endpoints_account_id")
        ),
        sa.ForeignKeyConstraint(
            ["batch_id", *OWNER],
            [f"batches.{column}" for column in ("id", *OWNER)],
            name=op.f("fk_webhook_endpoints_batch_id_account_id_livemode"),
        ),
    )
    op.create_index(
        "ix_webhook_endpoints_owner",
        "webhook_endpoints",
        [*OWNER],
        postgresql_where=sa.text("batch_id IS NULL AND deleted_at IS NULL"),
    )
    op.create_index(
        "uq_webhook_endpoints_batch_id",
        "webhook_endpoints",
        ["batch_id"],
        unique=True,
        postgresql_where=sa.text("batch_id IS NOT NULL"),
    )
    op.create_index(
        "ix_webhook_endpoints_deleted_at",
        "webhook_endpoints",
        ["deleted_at"],
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )
    op.execute(AUDIT)
    op.create_table(
        "webhook_deliveries",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("endpoint_id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default="0", nullable=False),
        _time("due_at", server_default=sa.func.now(), nullable=False),
        _time("attempted_at"),
        sa.Column("duration_ms", sa.BigInteger(), nullable=True),
        sa.Column("status_code", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("response", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("event_id", "endpoint_id", name=op.f("pk_webhook_deliveries")),
        *(
            sa.ForeignKeyConstraint(
                [*OWNER, column],
                [f"{table}.{name}" for name in (*OWNER, "id")],
                name=op.f(f"fk_webhook_deliveries_account_id_livemode_{column}"),
                ondelete="CASCADE",
            )
            for column, table in (("event_id", "events"), ("endpoint_id", "webhook_endpoints"))
        ),
    )
    op.create_index(
        "ix_webhook_deliveries_pending",
        "webhook_deliveries",
        ["endpoint_id", "due_at", "event_id"],
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        "ix_webhook_deliveries_endpoint_id_event_id",
        "webhook_deliveries",
        ["endpoint_id", "event_id"],
    )


def downgrade() -> None:
    op.drop_table("webhook_deliveries")
    op.drop_table("webhook_endpoints")
    op.drop_table("events")


def _time(name: str, **options: object) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), **{"nullable": True, **options})
