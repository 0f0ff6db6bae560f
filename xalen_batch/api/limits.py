"""/v1/limits"""

from typing import Literal, Self

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.api.deps import calling
from xalen_batch.ratelimit import account
from xalen_batch.ratelimit.account import Draw

router = APIRouter(prefix="/v1/limits", tags=["extensions"])


class Standing(BaseModel):
    """How much of one quota is used. `limit` and `free` are null where there is no limit."""

    used: int
    limit: int | None
    free: int | None = Field(
        description="0 where more is used than the limit, which may have been lowered."
    )

    @classmethod
    def of(cls, used: int, limit: int | None) -> Self:
        return cls(used=used, limit=limit, free=None if limit is None else max(0, limit - used))

    @classmethod
    def drawn(cls, draw: Draw | None) -> Self:
        """The standing of a rate limit: `used` is the number of requests taken from its bucket."""
        return cls.of(0, None) if draw is None else cls.of(draw.limit - draw.remaining, draw.limit)


class LimitsObject(BaseModel):
    """The quotas of the calling account, in the mode of its key."""

    object: Literal["limits"] = "limits"
    livemode: bool
    open_batches: Standing = Field(description="Batches that have not ended.")
    enqueued_lines: Standing = Field(description="Lines of those, once they are validated.")
    enqueued_tokens: Standing = Field(
        description="Input tokens of those: one for four bytes of a line."
    )
    files: Standing = Field(
        description="Files that are not deleted, output files and pending uploads too."
    )
    storage_bytes: Standing = Field(description="Bytes of those, and of the requests in inboxes.")
    pending_uploads: Standing = Field(description="Uploads in parts that are pending.")
    schedules: Standing = Field(description="Schedules that are not deleted.")
    waiting_runs: Standing = Field(description="Runs of those that wait to start.")
    inbox_requests: Standing = Field(
        description="Requests that wait for a schedule's next run, or for its input file."
    )
    api_keys: Standing = Field(description="API keys that can be used.")
    webhooks: Standing = Field(description="Webhooks, besides those of batches.")
    idempotency_keys: Standing = Field(description="Idempotency keys whose answers are kept.")
    requests_per_second: Standing = Field(description="Requests to this API, this one included.")
    changes_per_minute: Standing = Field(
        description="Those that make, change or delete something, inbox requests excepted."
    )


@router.get("")
@calling(Scope.READ)
def get_limits(session: Session, caller: Caller) -> LimitsObject:
    """The account's quotas: the limit, the used and the free part of each."""
    limits, held = quotas.limits(session, caller), quotas.held(session, caller)
    standings = {quota.value: Standing.of(used, limits[quota]) for quota, used in held.items()}
    return LimitsObject(
        livemode=caller.livemode,
        requests_per_second=Standing.drawn(account.current()),
        changes_per_minute=Standing.drawn(account.changes(session, caller)),
        **standings,
    )
