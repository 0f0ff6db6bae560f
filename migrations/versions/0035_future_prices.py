"""prices that begin in the future, which can be cancelled until then"""

from alembic import op

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None

FIXED = """
    (OLD.model, OLD.component, OLD.livemode, OLD.usd_per_million, OLD.valid_from)
    IS DISTINCT FROM (NEW.model, NEW.component, NEW.livemode, NEW.usd_per_million, NEW.valid_from)
"""


def _guard(update: str, delete: str) -> None:
    op.execute("DROP TRIGGER immutable ON prices")
    op.execute("DROP TRIGGER immutable_delete ON prices")
    op.execute(
        f"CREATE TRIGGER immutable BEFORE UPDATE ON prices FOR EACH ROW WHEN ({update} OR {FIXED})"
        " EXECUTE FUNCTION refuse_change('a price is never changed but to close it')"
    )
    op.execute(
        f"CREATE TRIGGER immutable_delete BEFORE DELETE ON prices FOR EACH ROW {delete}"
        " EXECUTE FUNCTION refuse_change('a price is never deleted')"
    )


def upgrade() -> None:
    # Until a price begins, no batch has it: it may go, and the end of the one before it with it.
    _guard("OLD.valid_to <= clock_timestamp()", "WHEN (OLD.valid_from <= clock_timestamp())")


def downgrade() -> None:
    _guard("OLD.valid_to IS NOT NULL", "")
