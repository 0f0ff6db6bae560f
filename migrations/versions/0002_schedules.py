"""schedules"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("definition", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("file_id", sa.Uuid(), nullable=True),
        sa.Column("status", sa.Text(), server_default="active", nullable=False),
        sa.Column("next_fire_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failures", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column(
            "run_counts",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("pause_note", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(next_fire_at IS NOT NULL) = (status = 'active' AND deleted_at IS NULL)",
            name=op.f("ck_schedules_next_fire_at"),
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_schedules_account_id")
        ),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name=op.f("fk_schedules_file_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedules")),
    )
    op.create_index(
        "ix_schedules_account_id_livemode_id",
        "schedules",
        ["account_id", "livemode", "id"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "ix_schedules_file_id",
        "schedules",
        ["file_id"],
        unique=False,
        postgresql_where=sa.text("file_id IS NOT NULL"),
    )
    op.create_index(
        "ix_schedules_next_fire_at",
        "schedules",
        ["next_fire_at"],
        unique=False,
        postgresql_where=sa.text("next_fire_at IS NOT NULL"),
    )
    op.create_table(
        "schedule_runs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("schedule_id", sa.Uuid(), nullable=False),
        sa.Column("scheduled_for", sa.DateTime(timezone=True), nullable=False),
        sa.Column("as_of", sa.DateTime(timezone=True), nullable=True),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("definition", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("manifest", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("fired_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["schedule_id"], ["schedules.id"], name=op.f("fk_schedule_runs_schedule_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedule_runs")),
        sa.UniqueConstraint(
            "schedule_id", "scheduled_for", name=op.f("uq_schedule_runs_schedule_id_scheduled_for")
        ),
    )
    op.create_index(
        "ix_schedule_runs_open",
        "schedule_runs",
        ["schedule_id", "scheduled_for"],
        unique=False,
        postgresql_where=sa.text("state IN ('waiting', 'running')"),
    )
    op.create_index(
        "ix_schedule_runs_schedule_id_id", "schedule_runs", ["schedule_id", "id"], unique=False
    )
    op.create_table(
        "consumed_objects",
        sa.Column("schedule_id", sa.Uuid(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["schedule_runs.id"], name=op.f("fk_consumed_objects_run_id")
        ),
        sa.ForeignKeyConstraint(
            ["schedule_id"], ["schedules.id"], name=op.f("fk_consumed_objects_schedule_id")
        ),
        sa.PrimaryKeyConstraint("schedule_id", "path", "version", name=op.f("pk_consumed_objects")),
    )
    op.create_table(
        "inbox_requests",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("schedule_id", sa.Uuid(), nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=False),
        sa.Column("line", sa.LargeBinary(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["schedule_runs.id"], name=op.f("fk_inbox_requests_run_id")
        ),
        sa.ForeignKeyConstraint(
            ["schedule_id"], ["schedules.id"], name=op.f("fk_inbox_requests_schedule_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_inbox_requests")),
    )
    op.create_index(
        "ix_inbox_requests_run_id",
        "inbox_requests",
        ["run_id"],
        unique=False,
        postgresql_where=sa.text("run_id IS NOT NULL"),
    )
    op.create_index(
        "uq_inbox_requests_open",
        "inbox_requests",
        ["schedule_id", "custom_id"],
        unique=True,
        postgresql_where=sa.text("run_id IS NULL"),
    )
    op.add_column("batches", sa.Column("schedule_id", sa.Uuid(), nullable=True))
    op.add_column("batches", sa.Column("run_id", sa.Uuid(), nullable=True))
    op.add_column(
        "batches",
        sa.Column("execution_window", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
    )
    op.add_column(
        "batches", sa.Column("window_opens_at", sa.DateTime(timezone=True), nullable=True)
    )
    op.add_column(
        "batches", sa.Column("window_closes_at", sa.DateTime(timezone=True), nullable=True)
    )
    op.create_check_constraint(
        op.f("ck_batches_execution_window"),
        "batches",
        "(execution_window IS NULL) = (window_closes_at IS NULL)",
    )
    op.create_index(
        "ix_batches_schedule_id_id",
        "batches",
        ["schedule_id", "id"],
        unique=False,
        postgresql_where=sa.text("schedule_id IS NOT NULL"),
    )
    op.create_unique_constraint(op.f("uq_batches_run_id"), "batches", ["run_id"])
    op.create_foreign_key(op.f("fk_batches_run_id"), "batches", "schedule_runs", ["run_id"], ["id"])
    op.create_foreign_key(
        op.f("fk_batches_schedule_id"), "batches", "schedules", ["schedule_id"], ["id"]
    )
    op.add_column("invoices", sa.Column("schedule_id", sa.Uuid(), nullable=True))
    op.add_column("invoices", sa.Column("schedule_name", sa.Text(), nullable=True))
    op.create_foreign_key(
        op.f("fk_invoices_schedule_id"), "invoices", "schedules", ["schedule_id"], ["id"]
    )


def downgrade() -> None:
    op.drop_constraint(op.f("fk_invoices_schedule_id"), "invoices", type_="foreignkey")
    op.drop_column("invoices", "schedule_name")
    op.drop_column("invoices", "schedule_id")
    op.drop_constraint(op.f("fk_batches_schedule_id"), "batches", type_="foreignkey")
    op.drop_constraint(op.f("fk_batches_run_id"), "batches", type_="foreignkey")
    op.drop_constraint(op.f("uq_batches_run_id"), "batches", type_="unique")
    op.drop_index(
        "ix_batches_schedule_id_id",
        table_name="batches",
        postgresql_where=sa.text("schedule_id IS NOT NULL"),
    )
    op.drop_constraint(op.f("ck_batches_execution_window"), "batches", type_="check")
    op.drop_column("batches", "window_closes_at")
    op.drop_column("batches", "window_opens_at")
    op.drop_column("batches", "execution_window")
    op.drop_column("batches", "run_id")
    op.drop_column("batches", "schedule_id")
    op.drop_index(
        "uq_inbox_requests_open",
        table_name="inbox_requests",
        postgresql_where=sa.text("run_id IS NULL"),
    )
    op.drop_index(
        "ix_inbox_requests_run_id",
        table_name="inbox_requests",
        postgresql_where=sa.text("run_id IS NOT NULL"),
    )
    op.drop_table("inbox_requests")
    op.drop_table("consumed_objects")
    op.drop_index("ix_schedule_runs_schedule_id_id", table_name="schedule_runs")
    op.drop_index(
        "ix_schedule_runs_open",
        table_name="schedule_runs",
        postgresql_where=sa.text("state IN ('waiting', 'running')"),
    )
    op.drop_table("schedule_runs")
    op.drop_index(
        "ix_schedules_next_fire_at",
        table_name="schedules",
        postgresql_where=sa.text("next_fire_at IS NOT NULL"),
    )
    op.drop_index(
        "ix_schedules_file_id",
        table_name="schedules",
        postgresql_where=sa.text("file_id IS NOT NULL"),
    )
    op.drop_index(
        "ix_schedules_account_id_livemode_id",
        table_name="schedules",
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.drop_table("schedules")
