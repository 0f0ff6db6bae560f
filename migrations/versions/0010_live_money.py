"""live money: what answers a live batch and who allowed simulated answers; price changes in the
audit log with their model and both prices
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# A price that is inserted where another one ended is a change, and one that ended without that is
# closed. The second is only known when the transaction ends, so its trigger is deferred.
WRITE_PRICE_AUDIT = """
CREATE FUNCTION write_price_audit() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    of jsonb := jsonb_build_object('model', NEW.model, 'component', NEW.component);
    other prices;
    event text;
    was jsonb;
    became jsonb;
BEGIN
    IF TG_OP = 'INSERT' THEN
        SELECT * INTO other FROM prices
        WHERE model = NEW.model AND component = NEW.component AND livemode = NEW.livemode AND valid_to = NEW.valid_from;
        event := CASE WHEN FOUND THEN 'price.changed' ELSE 'price.created' END;
        was := CASE WHEN FOUND THEN of || jsonb_build_object('usd_per_million', other.usd_per_million::text) END;
        became := of || jsonb_build_object('usd_per_million', NEW.usd_per_million::text, 'valid_from', NEW.valid_from);
    ELSE
        PERFORM FROM prices
        WHERE model = NEW.model AND component = NEW.component AND livemode = NEW.livemode AND valid_from = NEW.valid_to;
        IF FOUND THEN
            RETURN NULL;
        END IF;
        event := 'price.closed';
        was := of || jsonb_build_object('usd_per_million', NEW.usd_per_million::text);
        became := of || jsonb_build_object('valid_to', NEW.valid_to);
    END IF;
    INSERT INTO audit_log (actor, action, object_id, livemode, before, after) VALUES (
        coalesce(nullif(current_setting('xalen.actor', true), ''), 'database:' || session_user),
        event, 'price_' || replace(NEW.id::text, '-', ''), NEW.livemode, was, became
    );
    RETURN NULL;
END $$
"""
DELETED = (
    "write_audit('price', 'price', 'model', 'component', 'usd_per_million', 'valid_from',"
    " 'valid_to')"
)
AUDITED_BEFORE = (
    "CREATE TRIGGER audited AFTER INSERT OR DELETE OR UPDATE OF valid_to ON prices FOR EACH ROW"
    " EXECUTE FUNCTION " + DELETED
)


def upgrade() -> None:
    op.add_column(
        "accounts",
        sa.Column("simulated_live", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )
    op.add_column(
        "batches", sa.Column("backends", postgresql.JSONB(astext_type=sa.Text()), nullable=True)
    )
    op.add_column("invoice_lines", sa.Column("answered_by", sa.Text(), nullable=True))
    op.execute(
        "CREATE TRIGGER audited AFTER UPDATE OF simulated_live ON accounts FOR EACH ROW "
        "EXECUTE FUNCTION write_audit('account', 'acct', 'name', 'simulated_live')"
    )
    op.execute(WRITE_PRICE_AUDIT)
    op.execute("DROP TRIGGER audited ON prices")
    op.execute(
        "CREATE TRIGGER audited AFTER INSERT ON prices FOR EACH ROW EXECUTE FUNCTION"
        " write_price_audit()"
    )
    op.execute(
        "CREATE CONSTRAINT TRIGGER audited_end AFTER UPDATE OF valid_to ON prices DEFERRABLE"
        " INITIALLY DEFERRED FOR EACH ROW WHEN (OLD.valid_to IS NULL AND NEW.valid_to IS NOT NULL)"
        " EXECUTE FUNCTION write_price_audit()"
    )
    op.execute(
        "CREATE TRIGGER audited_delete AFTER DELETE ON prices FOR EACH ROW EXECUTE FUNCTION"
        f" {DELETED}"
    )


def downgrade() -> None:
    for trigger in ("audited", "audited_end", "audited_delete"):
        op.execute(f"DROP TRIGGER {trigger} ON prices")
    op.execute("DROP FUNCTION write_price_audit()")
    op.execute(AUDITED_BEFORE)
    op.execute("DROP TRIGGER audited ON accounts")
    op.drop_column("invoice_lines", "answered_by")
    op.drop_column("batches", "backends")
    op.drop_column("accounts", "simulated_live")
