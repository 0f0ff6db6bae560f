"""Retries of a batch: a new batch of the lines that failed, and the list of them."""

import hashlib
from typing import Annotated

import orjson
from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.api import idempotency
from xalen_batch.api.batches import PATH, shown
from xalen_batch.api.deps import IdempotencyKey, calling
from xalen_batch.api.http.responses import stored_for
from xalen_batch.api.schemas import BatchObject, BatchWebhook, ListObject
from xalen_batch.batches import batches, retries
from xalen_batch.fields import Metadata, Text
from xalen_batch.webhooks import endpoints

MOST_CODES = 100
router = APIRouter(prefix=PATH, tags=["extensions"])


class RetryRequest(BaseModel):
    """Null stands for anything; what is not given is as in the first batch."""

    # A misspelt `codes` must not retry every line.
    model_config = ConfigDict(extra="forbid")

    codes: Annotated[list[Text], Field(min_length=1, max_length=MOST_CODES)] | None = Field(
        None,
        description=(
            "Only lines that failed with these codes: an error code, or `http_` and a status, as on"
            " the invoice. Unset: all lines that failed, expired or were cancelled."
        ),
        examples=[["batch_expired", "http_503"]],
    )
    completion_window: Text | None = Field(None, description="As of a batch.", examples=["24h"])
    metadata: Metadata | None = None
    webhook: BatchWebhook | None = Field(
        None, description="Gets the events of the new batch; that of the first batch does not."
    )


@router.post("/{batch_id}/retry", response_model=BatchObject)
@calling(Scope.SUBMIT)
def retry_batch(
    session: Session,
    caller: Caller,
    batch_id: str,
    body: RetryRequest | None = None,
    key: IdempotencyKey = None,
) -> Response:
    """Create a batch of the lines of an ended batch that failed, expired or were cancelled.

    It is billed by itself, at the prices and the discount of this moment. The first batch and its
    invoice do not change.
    """
    asked = body or RetryRequest()

    def create() -> bytes:
        batch = retries.create(
            session,
            caller,
            batch_id,
            codes=asked.codes,
            completion_window=asked.completion_window,
            metadata=asked.metadata,
        )
        if asked.webhook is not None:
            endpoints.of_batch(session, batch, url=asked.webhook.url, secret=asked.webhook.secret)
        return shown(session, [batch])[0].model_dump_json().encode()

    # A request without a webhook has the fingerprint of the version before it.
    left_out = {"webhook"} if asked.webhook is None else set()
    request = {"batch_id": batch_id, **asked.model_dump(exclude=left_out)}
    answer = idempotency.once(
        session,
        caller,
        key,
        route=f"POST {PATH}/{{batch_id}}/retry",
        fingerprint=hashlib.sha256(orjson.dumps(request, option=orjson.OPT_SORT_KEYS)).digest(),
        create=create,
    )
    # It shows what the first batch has, such as its metadata.
    return stored_for(caller, answer, BatchObject)


@router.get("/{batch_id}/retries")
@calling(Scope.READ)
def list_retries(session: Session, caller: Caller, batch_id: str) -> ListObject[BatchObject]:
    """The retries of a batch and of its retries, the oldest first."""
    found = retries.of(session, batches.get(session, caller, batch_id))
    return ListObject[BatchObject].of(shown(session, found), has_more=False)
