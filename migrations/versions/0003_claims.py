"""claims: indexes of what is open, and the workers that are alive"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_index(
        "ix_tasks_open",
        "tasks",
        ["state", "batch_id", "model", "seq"],
        unique=False,
        postgresql_where=sa.text("state <> 'done'"),
    )
    op.drop_index(
        "ix_tasks_running", table_name="tasks", postgresql_where=sa.text("state = 'running'")
    )
    op.drop_index(
        "ix_tasks_pending", table_name="tasks", postgresql_where=sa.text("state = 'pending'")
    )
    op.create_index(
        "ix_batches_claimable",
        "batches",
        ["account_id", "livemode", sa.literal_column("coalesce(model, '')"), "expires_at", "id"],
        unique=False,
        postgresql_where=sa.text("status = 'in_progress'"),
    )
    op.create_index(
        "ix_batches_window_closes_at",
        "batches",
        ["window_closes_at"],
        unique=False,
        postgresql_where=sa.text(
            "status IN ('validating', 'in_progress') AND window_closes_at IS NOT NULL"
        ),
    )


def downgrade() -> None:
    op.drop_index(
        "ix_batches_window_closes_at",
        table_name="batches",
        postgresql_where=sa.text(
            "status IN ('validating', 'in_progress') AND window_closes_at IS NOT NULL"
        ),
    )
    op.drop_index(
        "ix_batches_claimable",
        table_name="batches",
        postgresql_where=sa.text("status = 'in_progress'"),
    )
    op.create_index(
        "ix_tasks_pending",
        "tasks",
        ["batch_id", "seq"],
        unique=False,
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        "ix_tasks_running",
        "tasks",
        ["lease_until"],
        unique=False,
        postgresql_where=sa.text("state = 'running'"),
    )
    op.drop_index("ix_tasks_open", table_name="tasks", postgresql_where=sa.text("state <> 'done'"))
    op.drop_table("workers")
