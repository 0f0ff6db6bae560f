"""Schemas of API keys.

Unknown fields are refused: a misspelt restriction must not create a key with more rights.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from xalen_batch import ids
from xalen_batch.accounts.accounts import ORDINARY, Scope
from xalen_batch.accounts.keys import LONGEST_OVERLAP, OVERLAP
from xalen_batch.api.schemas import Identified
from xalen_batch.fields import STORABLE, Time
from xalen_batch.models import ApiKey


class KeyObject(Identified):
    object: Literal["api_key"] = "api_key"
    name: str
    prefix: str
    livemode: bool
    scopes: list[str]
    created_at: int
    last_used_at: int | None
    expires_at: int | None
    rotated_from: str | None

    @classmethod
    def of(cls, key: ApiKey) -> "KeyObject":
        return cls(
            id=ids.render("key", key.id),
            name=key.name,
            prefix=key.prefix,
            livemode=key.livemode,
            scopes=key.scopes,
            created_at=int(key.created_at.timestamp()),
            last_used_at=_seconds(key.last_used_at),
            expires_at=_seconds(key.expires_at),
            rotated_from=key.rotated_from and ids.render("key", key.rotated_from),
        )


class NewKeyObject(KeyObject):
    """A key just made: the one answer that has its secret."""

    secret: str


class DeletedKey(BaseModel):
    id: str
    object: Literal["api_key"] = "api_key"
    deleted: Literal[True] = True


class KeyRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), STORABLE
    ] = Field(description="What the key is for.")
    scopes: list[Scope] = Field(list(ORDINARY), min_length=1, description="What it may do.")
    expires_at: Time | None = Field(
        None, description="When its use ends: ISO 8601 (UTC without an offset) or Unix seconds."
    )


class RotationRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    overlap_seconds: int = Field(
        int(OVERLAP.total_seconds()),
        ge=0,
        le=int(LONGEST_OVERLAP.total_seconds()),
        description="How long the old key may still be used.",
    )


def _seconds(time: datetime | None) -> int | None:
    return None if time is None else int(time.timestamp())
