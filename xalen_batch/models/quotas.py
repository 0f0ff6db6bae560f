"""Quotas that an operator gave an account, and tallies of rows that are too many to count."""

from enum import StrEnum
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch.models.base import Base


class AccountQuota(Base):
    """One limit of an account in one mode. Without a row the limit of the settings applies."""

    __tablename__ = "account_quotas"
    __table_args__ = (CheckConstraint("most >= 0", name="not_negative"),)

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"), primary_key=True)
    livemode: Mapped[bool] = mapped_column(primary_key=True)
    # A `quotas.Quota`.
    name: Mapped[str] = mapped_column(primary_key=True)
    # Null: no limit.
    most: Mapped[int | None]


class Tally(StrEnum):
    """The sums that triggers keep, in the transaction that changes the rows.

    Migrations 0009, 0016 and 0025 create the triggers.
    """

    INBOX_REQUESTS = "inbox_requests"
    INBOX_BYTES = "inbox_bytes"
    IDEMPOTENCY_KEYS = "idempotency_keys"
    # Files that are not deleted, and their bytes.
    FILES = "files"
    FILE_BYTES = "file_bytes"
    # Uploads in parts that are pending, and the bytes that they declared.
    UPLOADS = "uploads"
    UPLOAD_BYTES = "upload_bytes"


class AccountTally(Base):
    """One sum of an account in one mode. Only triggers write it."""

    __tablename__ = "account_tallies"

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"), primary_key=True)
    livemode: Mapped[bool] = mapped_column(primary_key=True)
    # A `Tally`.
    name: Mapped[str] = mapped_column(primary_key=True)
    amount: Mapped[int]
