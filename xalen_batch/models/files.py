"""Files: uploads, and the output files of batches, which are views over results until sealed."""

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
    """The lines of its batch that an output file shows: those that succeeded, or the others."""

    OUTPUT = "output"
    ERROR = "error"


class File(Base):
    """A row changes when the file is deleted, and when a schedule's run has assembled its input."""

    __tablename__ = "files"
    __table_args__ = (
        # Lists of an account's files. The bytes are a remainder of quotas before migration 0016.
        Index(
            "ix_files_account_id_livemode_id",
            "account_id",
            "livemode",
            "id",
            postgresql_where=text("deleted_at IS NULL"),
            postgresql_include=["bytes"],
        ),
        Index(
            "ix_files_account_id_livemode_purpose_id",
            "account_id",
            "livemode",
            "purpose",
            "id",
            postgresql_where=text("deleted_at IS NULL"),
        ),
        # Target of foreign keys of batches and schedules. With the next one: a batch, its schedule
        # and its files have the same account and mode.
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
    # Of the content. Null, and 0 bytes, while the input of a schedule's run is not assembled; null
    # of an output file while it is rendered from rows of `results`, until its batch is sealed.
    sha256: Mapped[bytes | None]
    # Of the object of a sealed output file, which is compressed; else null.
    stored_bytes: Mapped[int | None]
    # Of an output file, else null.
    batch_id: Mapped[UUID | None]
    part: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
