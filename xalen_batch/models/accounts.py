"""Accounts, and their API keys. A key belongs to one account in one mode (live or test)."""

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
    # Weighted fair queuing: `virtual_time` is the lines served over `weight`; the account with the
    # least is served next.
    weight: Mapped[int] = mapped_column(server_default="1")
    virtual_time: Mapped[float] = mapped_column(server_default="0")
    # Claims of an account alternate between its batch with the earliest deadline and a round robin
    # over its batches by deadline. `rotates_next`: the next claim belongs to the round robin.
    # `rotated_…`: the batch that the round robin served last (docs/decisions/0036).
    rotates_next: Mapped[bool] = mapped_column(server_default=text("false"))
    rotated_deadline: Mapped[datetime | None]
    rotated_batch_id: Mapped[UUID | None]
    # Not null: its keys are refused, and its schedules start no run.
    disabled_at: Mapped[datetime | None]
    # Live batches may name models that the catalog calls simulated. Set by the operator
    # (docs/decisions/0029).
    simulated_live: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ApiKey(Base):
    """An API key, stored as its first characters and its SHA-256. The key is shown only once."""

    __tablename__ = "api_keys"
    __table_args__ = (
        # Target of the next constraint: a key replaces one of its own account and mode.
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
    # The key that this one replaces.
    rotated_from: Mapped[UUID | None] = mapped_column(unique=True)
