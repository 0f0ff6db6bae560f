"""demand: a view of the lines that are left to run, for autoscalers"""

from alembic import op

revision = "0037"
down_revision = "0036"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Literals: only then can the planner use the partial indexes of open batches and tasks.
    op.execute("""
        CREATE VIEW demand AS
        SELECT
            tasks.model,
            batches.livemode,
            CASE
                WHEN batches.expires_at <= now() THEN 'overdue'
                WHEN batches.expires_at <= now() + interval '1 hour' THEN '1h'
                WHEN batches.expires_at <= now() + interval '6 hours' THEN '6h'
                WHEN batches.expires_at <= now() + interval '24 hours' THEN '24h'
                ELSE 'later'
            END AS due,
            batches.window_closes_at IS NULL
                OR (batches.window_opens_at <= now() AND now() < batches.window_closes_at)
                AS is_open,
            count(DISTINCT batches.id) AS batches,
            sum(tasks.lines - tasks.completed - tasks.failed)::bigint AS lines,
            ceil(sum(
                batches.enqueued_tokens * (tasks.lines - tasks.completed - tasks.failed)::numeric
                / greatest(batches.total, 1)
            ))::bigint AS input_tokens,
            min(batches.created_at) AS oldest
        FROM batches JOIN tasks ON tasks.batch_id = batches.id
        WHERE batches.status = 'in_progress' AND tasks.state <> 'done'
        GROUP BY 1, 2, 3, 4
    """)


def downgrade() -> None:
    op.execute("DROP VIEW demand")
