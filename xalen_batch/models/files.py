"""Files: uploads, whose bytes are in object storage, and outputs, which are views over results."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch.models.base import Base


class FilePart(StrEnum):
    """Which lines of its batch an output file shows."""

    OUTPUT = "output"
    ERROR = "error"


class File(Base):
    """Never updated after it is there but for its deletion."""

    __tablename__ = "files"
    __table_args__ = (
        # With the bytes, so that an account's are added up without a look at its files.
        Index(
            "ix_files_account_id_livemode_id",
            "account_id",
            "livemode",
            "id",
            postgresql_where=text("deleted_at IS NULL"),
            postgresql_include=["bytes"],
        ),
        # What batches and schedules point at, and what an output file is of: all of one account and
        # mode.
        UniqueConstraint("id", "account_id", "livemode"),
        ForeignKeyConstraint(
            ["batch_id", "account_id", "livemode"],
            ["batches.id", "batches.account_id", "batches.livemode"],
            use_alter=True,
        ),
        Index("ix_files_expires_at", "expires_at", postgresql_where=text("deleted_at IS NULL")),
        CheckConstraint("(batch_id IS NULL) = (part IS NULL)", name="part_of_a_batch"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    livemode: Mapped[bool]
    purpose: Mapped[str]
    filename: Mapped[str]
    size: Mapped[int] = mapped_column("bytes")
    # Of an upload: what its idempotency key and its batches are checked against. Null, with no
    # bytes yet, while the input of a schedule's run waits to be put together.
    sha256: Mapped[bytes | None]
    # Of an output file.
    batch_id: Mapped[UUID | None]
    part: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
