"""Who: accounts, and the keys that stand for one account in one mode."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Text, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch.models.base import Base


class Account(Base):
    __tablename__ = "accounts"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    # Fair claiming: lines served so far over weight; the account with the least goes next.
    weight: Mapped[int] = mapped_column(server_default="1")
    virtual_time: Mapped[float] = mapped_column(server_default="0")
    # Claims of this account alternate: its batch with the next deadline, and a round robin over its
    # batches by deadline. Whether the next claim is of the round robin, and the batch that it
    # served last (docs/decisions/0036).
    rotates_next: Mapped[bool] = mapped_column(server_default=text("false"))
    rotated_deadline: Mapped[datetime | None]
    rotated_batch_id: Mapped[UUID | None]
    # Its keys are refused, and its schedules start no run.
    disabled_at: Mapped[datetime | None]
    # Live batches may name models that the catalog calls simulated. The operator's word
    # (docs/decisions/0029).
    simulated_live: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ApiKey(Base):
    """A key is shown once; the table knows its first characters and its SHA-256."""

    __tablename__ = "api_keys"
    __table_args__ = (
        # A key takes the place of one of its own account and mode.
        UniqueConstraint("id", "account_id", "livemode"),
        ForeignKeyConstraint(
            ["rotated_from", "account_id", "livemode"],
            ["api_keys.id", "api_keys.account_id", "api_keys.livemode"],
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"), index=True)
    livemode: Mapped[bool]
    name: Mapped[str]
    prefix: Mapped[str]
    hash: Mapped[bytes] = mapped_column(unique=True)
    scopes: Mapped[list[str]] = mapped_column(
        ARRAY(Text), server_default=text("'{submit,read,billing}'")
    )
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    # The key that it takes the place of.
    rotated_from: Mapped[UUID | None] = mapped_column(unique=True)
