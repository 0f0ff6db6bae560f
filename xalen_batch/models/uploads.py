"""Uploads in parts: a file that arrives in several requests."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    func,
    text,
    update,
)
from sqlalchemy.orm import Mapped, Session, mapped_column

from xalen_batch.models.base import Base
from xalen_batch.states import UploadStatus


class Upload(Base):
    """A pending upload counts in quotas with the bytes that it declared (a trigger's tally)."""

    __tablename__ = "uploads"
    __table_args__ = (
        # For the sweep: uploads whose parts are still stored, and those to forget.
        Index("ix_uploads_uncleared", "expires_at", "id", postgresql_where=text("NOT is_cleared")),
        Index("ix_uploads_cleared", "expires_at", postgresql_where=text("is_cleared")),
        ForeignKeyConstraint(
            ["file_id", "account_id", "livemode"],
            ["files.id", "files.account_id", "files.livemode"],
        ),
        CheckConstraint("bytes > 0", name="bytes"),
        CheckConstraint("received <= bytes", name="received"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    livemode: Mapped[bool]
    # A `states.UploadStatus`.
    status: Mapped[str] = mapped_column(server_default=UploadStatus.PENDING.value)
    purpose: Mapped[str]
    filename: Mapped[str]
    mime_type: Mapped[str]
    # Declared at creation.
    size: Mapped[int] = mapped_column("bytes")
    # The life of the file in seconds; null: that of its purpose.
    expires_after: Mapped[int | None]
    # The number of parts; the bytes of those with different contents; and the parts beside them,
    # each with the content of another part, that count no bytes.
    parts: Mapped[int] = mapped_column(server_default="0")
    received: Mapped[int] = mapped_column(server_default="0")
    repeats: Mapped[int] = mapped_column(server_default="0")
    # Of a completed upload: its file, and the SHA-256 of the part ids in their order.
    file_id: Mapped[UUID | None]
    order_sha256: Mapped[bytes | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    # Whether the parts are deleted, from storage and from `upload_parts`.
    is_cleared: Mapped[bool] = mapped_column(server_default=text("false"))

    def end(self, session: Session, status: UploadStatus, **values: Any) -> bool:
        """Move this upload from `pending` to `status`, by a guarded UPDATE.

        False: another transaction has moved it, and nothing is written.
        """
        ended = session.execute(
            update(Upload)
            .where(Upload.id == self.id, Upload.status == UploadStatus.PENDING)
            .values(status=status.value, **values)
            .returning(Upload.id)
            .execution_options(synchronize_session=False)
        ).one_or_none()
        session.refresh(self)
        return ended is not None


class UploadPart(Base):
    """A part whose bytes are stored. Never changes; deleted after its object."""

    __tablename__ = "upload_parts"
    __table_args__ = (Index("ix_upload_parts_upload_id_sha256", "upload_id", "sha256"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    upload_id: Mapped[UUID] = mapped_column(ForeignKey("uploads.id"))
    size: Mapped[int] = mapped_column("bytes")
    sha256: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
