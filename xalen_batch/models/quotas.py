"""Quotas that an operator gave to an account in the place of the settings'."""

from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch.models.base import Base


class AccountQuota(Base):
    """One limit of an account in one mode. Without a row the settings' limit holds."""

    __tablename__ = "account_quotas"
    __table_args__ = (CheckConstraint("most >= 0", name="not_negative"),)

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"), primary_key=True)
    livemode: Mapped[bool] = mapped_column(primary_key=True)
    # A `quotas.Quota`.
    name: Mapped[str] = mapped_column(primary_key=True)
    # Null: no limit.
    most: Mapped[int | None]
