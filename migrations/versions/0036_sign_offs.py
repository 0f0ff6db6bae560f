"""sign-offs of months, after which no invoice or credit note is added to them"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None

# The lock waits for a sign-off that is under way, which takes it exclusively (billing/sign_offs.py).
# It is taken for rows of past months alone, which are an exception.
REFUSE = """
CREATE FUNCTION refuse_signed_off() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    added jsonb := to_jsonb(NEW);
    of date := coalesce((added ->> 'month')::date,
        date_trunc('month', coalesce(added ->> 'issued_at', added ->> 'created_at')::timestamptz AT TIME ZONE 'UTC')::date);
BEGIN
    PERFORM pg_advisory_xact_lock_shared(7261970);
    IF of <= (SELECT max(month) FROM sign_offs) THEN
        RAISE EXCEPTION 'the month % is signed off', to_char(of, 'YYYY-MM') USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$
"""
LATE = "< date_trunc('month', clock_timestamp(), 'UTC')"


def upgrade() -> None:
    op.create_table(
        "sign_offs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("month", sa.Date(), nullable=False),
        sa.Column("previous", sa.Text(), nullable=False),
        sa.Column("head", sa.Text(), nullable=False),
        sa.Column("sections", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "signed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sign_offs")),
        sa.UniqueConstraint("month", name=op.f("uq_sign_offs_month")),
    )
    op.execute(
        "CREATE TRIGGER immutable BEFORE UPDATE OR DELETE ON sign_offs FOR EACH ROW EXECUTE"
        " FUNCTION refuse_change('a sign-off never changes')"
    )
    op.execute(
        "CREATE TRIGGER audited AFTER INSERT OR DELETE ON sign_offs FOR EACH ROW EXECUTE FUNCTION"
        " write_audit('month', 'signoff', 'month', 'head')"
    )
    op.execute(REFUSE)
    op.execute(
        "CREATE TRIGGER signed_off BEFORE INSERT ON invoices FOR EACH ROW WHEN"
        f" (NEW.month IS NOT NULL OR NEW.issued_at {LATE}) EXECUTE FUNCTION refuse_signed_off()"
    )
    op.execute(
        "CREATE TRIGGER signed_off BEFORE INSERT ON credit_notes FOR EACH ROW WHEN"
        f" (NEW.created_at {LATE}) EXECUTE FUNCTION refuse_signed_off()"
    )


def downgrade() -> None:
    for table in ("invoices", "credit_notes"):
        op.execute(f"DROP TRIGGER signed_off ON {table}")
    op.drop_table("sign_offs")
    op.execute("DROP FUNCTION refuse_signed_off()")
