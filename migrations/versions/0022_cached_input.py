"""a price of cached input, and the components that each worker charges"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

CHECK = "ck_prices_component"


def upgrade() -> None:
    op.add_column("workers", sa.Column("components", postgresql.ARRAY(sa.Text()), nullable=True))
    op.drop_constraint(CHECK, "prices")
    op.create_check_constraint(
        op.f(CHECK), "prices", "component IN ('input', 'cached_input', 'output')"
    )


def downgrade() -> None:
    op.drop_constraint(CHECK, "prices")
    # Not checked against the rows: a price is never deleted.
    op.execute(
        f"ALTER TABLE prices ADD CONSTRAINT {CHECK} CHECK (component IN ('input', 'output'))"
        " NOT VALID"
    )
    op.drop_column("workers", "components")
