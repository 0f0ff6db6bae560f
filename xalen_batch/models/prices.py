"""List prices over time. A trigger refuses every change of a row but setting `valid_to`, and
deleting a price that has begun.
"""

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import CheckConstraint, func, text
from sqlalchemy.dialects.postgresql import ExcludeConstraint
from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch.models.base import Base


class Price(Base):
    """The price of one component of a model in one mode, from `valid_from` until `valid_to`."""

    __tablename__ = "prices"
    __table_args__ = (
        ExcludeConstraint(
            ("model", "="),
            ("component", "="),
            (text("(livemode::int)"), "="),
            (text("tstzrange(valid_from, valid_to)"), "&&"),
            name="ex_prices_no_overlap",
            using="gist",
        ),
        CheckConstraint("usd_per_million >= 0", name="not_negative"),
        CheckConstraint("component IN ('input', 'cached_input', 'output')", name="component"),
        CheckConstraint("valid_to > valid_from", name="period"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    model: Mapped[str]
    component: Mapped[str]
    livemode: Mapped[bool]
    usd_per_million: Mapped[Decimal]
    valid_from: Mapped[datetime] = mapped_column(server_default=func.now())
    valid_to: Mapped[datetime | None]
