"""Sign-offs of months: the hashes of the month's books. A trigger refuses changes."""

from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Date, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch.models.base import Base


class SignOff(Base):
    """The books of one month over all accounts, as they were when it was signed off."""

    __tablename__ = "sign_offs"
    __table_args__ = (UniqueConstraint("month"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    # First day of the month, UTC.
    month: Mapped[date] = mapped_column(Date)
    # The head of the month before, and this month's (billing/books.py), in hex.
    previous: Mapped[str]
    head: Mapped[str]
    # {section: {"records": number, "head": hex}}
    sections: Mapped[dict[str, Any]]
    signed_at: Mapped[datetime] = mapped_column(server_default=func.now())
