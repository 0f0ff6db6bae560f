"""Tokens of the console: sessions of browsers, and links that sign in once."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKeyConstraint, Index, func
from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch.models.base import Base


class ConsoleToken(Base):
    """A token, stored as its SHA-256, that stands for an API key until it expires.

    A trigger writes an entry of the audit log for each session.
    """

    __tablename__ = "console_tokens"
    __table_args__ = (
        ForeignKeyConstraint(
            ["key_id", "account_id", "livemode"],
            ["api_keys.id", "api_keys.account_id", "api_keys.livemode"],
        ),
        Index("ix_console_tokens_key_id_created_at", "key_id", "created_at"),
        Index("ix_console_tokens_expires_at", "expires_at"),
    )

    hash: Mapped[bytes] = mapped_column(primary_key=True)
    # True: the token of a link, which is exchanged for a session. False: that of a session.
    is_link: Mapped[bool]
    key_id: Mapped[UUID]
    account_id: Mapped[UUID]
    livemode: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
