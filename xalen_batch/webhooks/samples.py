"""Samples: events that never happened, posted to a webhook at once to test its receiver.

A sample is no row: it is in no list, is not replayed, and goes to no other webhook.
"""

import time
from datetime import UTC, datetime
from functools import cache
from typing import NamedTuple
from uuid import UUID

from xalen_batch import ids, log
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import WebhookEndpoint
from xalen_batch.models.events import EventType, object_kind
from xalen_batch.webhooks import endpoints, payload, signing
from xalen_batch.webhooks.receiver import NoAnswer, Receivers

logger = log.get(__name__)


class Sample(NamedTuple):
    """An event of an object that does not exist, unless it is about the webhook itself."""

    event_id: UUID
    type: str
    object_id: UUID
    created_at: datetime


def send(endpoint: WebhookEndpoint, type: EventType) -> int:
    """Post a sample of an event, signed as a delivery; the status of the receiver's answer.

    It takes up to 15 s. Raises InvalidRequest if the receiver does not answer, and WebhookDisabled.
    """
    endpoints.refuse_if_disabled(endpoint)
    now = datetime.now(UTC)
    is_about_webhook = object_kind(type.value) == "whe"
    sample = Sample(ids.new(), type.value, endpoint.id if is_about_webhook else ids.new(), now)
    body = payload.body(sample)
    id = payload.event_id(sample)
    secrets = endpoints.signing_secrets(endpoint, now)
    headers = signing.headers(secrets, id, int(now.timestamp()), body)
    started = time.monotonic()
    status, problem = None, None
    try:
        status = _receivers().post(endpoint.url, headers, body).status
    except NoAnswer as error:
        problem = error
    logger.info(
        "webhook.tested",
        webhook_id=endpoint.id,
        status=status,
        ms=round((time.monotonic() - started) * 1000),
    )
    if status is None:
        raise InvalidRequest(
            f"The webhook's receiver did not answer. {problem} Check that its URL can be reached"
            " from the internet, and test it again.",
            param="webhook_id",
            code="webhook_no_answer",
        )
    return status


@cache
def _receivers() -> Receivers:
    return Receivers()
