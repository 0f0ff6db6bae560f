"""Endpoints: the webhooks of an account, and those that batches bring."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from xalen_batch import db, ids, paging
from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Owner
from xalen_batch.accounts.quotas import Quota
from xalen_batch.errors import QUOTED_CHARS, InvalidRequest, NotFound, WebhookDisabled
from xalen_batch.models import Batch, WebhookEndpoint, deliveries
from xalen_batch.models.events import EventType
from xalen_batch.models.webhooks import WebhookStatus
from xalen_batch.paging import Page
from xalen_batch.states import TERMINAL
from xalen_batch.webhooks import addresses, signing

# Time for which the previous secret signs as well, after a rotation.
OVERLAP = timedelta(hours=24)
LONGEST_OVERLAP = timedelta(days=7)
# The reason of a webhook that its owner disabled.
MANUAL = "manual"
# Endpoints that `forget` deletes at most.
AT_ONCE = 1_000


def create(
    session: Session,
    owner: Owner,
    *,
    url: str,
    types: Sequence[EventType] | None = None,
    description: str | None = None,
    is_enabled: bool = True,
) -> WebhookEndpoint:
    """Create a webhook with a new secret. `types`: of the events that it gets; None: all.

    Raises InvalidRequest for a URL that webhooks may not have, and TooManyRequests if the account
    has its quota of them.
    """
    target = addresses.check(url)
    quotas.admit(session, owner, {Quota.WEBHOOKS: 1})
    endpoint = WebhookEndpoint(
        id=ids.new(),
        account_id=owner.account_id,
        livemode=owner.livemode,
        url=target.url,
        events=_names(types),
        description=description,
        secret=signing.new_secret(),
    )
    session.add(endpoint)
    session.flush()
    if not is_enabled:
        set_enabled(session, endpoint, False)
    return endpoint


def of_batch(session: Session, batch: Batch, *, url: str, secret: str | None) -> WebhookEndpoint:
    """Create the webhook that a batch brings, which gets the batch's events alone.

    Without a secret its deliveries are not signed. Raises InvalidRequest.
    """
    if secret is not None:
        signing.check_secret(secret, "webhook.secret")
    endpoint = WebhookEndpoint(
        id=ids.new(),
        account_id=batch.account_id,
        livemode=batch.livemode,
        batch_id=batch.id,
        url=addresses.check(url, "webhook.url").url,
        secret=secret or "",
    )
    session.add(endpoint)
    session.flush()
    return endpoint


def get(session: Session, owner: Owner, public_id: str) -> WebhookEndpoint:
    """A webhook of this owner, also one of a batch. Raises NotFound."""
    return _one(session, _visible(owner), public_id)


def lock(session: Session, owner: Owner, public_id: str) -> WebhookEndpoint:
    """As `get`, locked until this transaction ends.

    The lock lets others write deliveries, whose key refers to the row.
    """
    return _one(session, _visible(owner).with_for_update(key_share=True), public_id)


def page(
    session: Session, owner: Owner, *, limit: int, after: str | None, batch_id: str | None
) -> Page[WebhookEndpoint]:
    """A page of the owner's webhooks, the newest first; or with `batch_id`, that of this batch."""
    rows = _visible(owner)
    if batch_id is None:
        rows = rows.where(WebhookEndpoint.batch_id.is_(None))
    else:
        rows = rows.where(WebhookEndpoint.batch_id == _batch(batch_id))
    return paging.page(
        session, rows, WebhookEndpoint.id, "whe", limit=limit, order="desc", after=after
    )


def change(
    session: Session,
    endpoint: WebhookEndpoint,
    *,
    url: str | None,
    types: Sequence[EventType] | None,
    description: str | None,
) -> None:
    """Change a locked webhook. Raises InvalidRequest for a URL that it may not have.

    `url`: None leaves it, also if the settings do not allow it any more.
    """
    if url is not None:
        endpoint.url = addresses.check(url).url
    endpoint.events = _names(types)
    endpoint.description = description
    if session.is_modified(endpoint):
        endpoint.changed_at = db.now(session)
    session.flush()


def set_enabled(session: Session, endpoint: WebhookEndpoint, is_enabled: bool) -> None:
    """Enable a locked webhook and forget its failures, or disable it: it gets no events then."""
    if is_enabled:
        deliveries.enable(session, endpoint.id)
    else:
        deliveries.disable(session, endpoint.id, MANUAL)
    session.refresh(endpoint)


def rotate(session: Session, endpoint: WebhookEndpoint, overlap: timedelta = OVERLAP) -> None:
    """Give a locked webhook a new secret. The old one signs as well until the overlap is over."""
    now = db.now(session)
    keeps = bool(endpoint.secret) and overlap > timedelta()
    endpoint.previous_secret = endpoint.secret if keeps else None
    endpoint.previous_secret_until = now + overlap if keeps else None
    endpoint.secret = signing.new_secret()
    endpoint.rotated_at = endpoint.changed_at = now
    session.flush()


def types_of(endpoint: WebhookEndpoint) -> list[EventType] | None:
    """The types of the events that a webhook gets; None: all."""
    return None if endpoint.events is None else [EventType(name) for name in endpoint.events]


def signing_secrets(endpoint: WebhookEndpoint, now: datetime) -> list[str]:
    """The secrets that sign now, the newest first; none for a batch's webhook without a secret."""
    until = endpoint.previous_secret_until
    found = [endpoint.secret] if endpoint.secret else []
    if endpoint.previous_secret is not None and until is not None and now < until:
        found.append(endpoint.previous_secret)
    return found


def delete_one(session: Session, endpoint: WebhookEndpoint) -> None:
    """Delete a locked webhook with its secrets. What waits for it is not sent."""
    endpoint.deleted_at = db.now(session)
    endpoint.secret, endpoint.previous_secret = "", None
    session.flush()


def refuse_if_disabled(endpoint: WebhookEndpoint) -> None:
    """Raise WebhookDisabled for a webhook that gets no events."""
    if endpoint.status != WebhookStatus.ENABLED:
        name = ids.render("whe", endpoint.id)
        raise WebhookDisabled(
            f'Webhook {name} is disabled. Enable it first: PATCH /v1/webhooks/{name} {{"enabled":'
            f" true}}, or `xalen-batch webhooks update {name} --enabled on`."
        )


def forget(session: Session, life: timedelta) -> int:
    """Delete some rows of webhooks that were deleted, or whose batch was made, `life` ago."""
    horizon = db.now(session) - life
    has_open_batch = (
        select(Batch.id)
        .where(Batch.id == WebhookEndpoint.batch_id, Batch.status.not_in(TERMINAL))
        .exists()
    )
    number = 0
    for some in (
        select(WebhookEndpoint.id).where(WebhookEndpoint.deleted_at < horizon),
        # The ids of batches begin with their time.
        select(WebhookEndpoint.id)
        .where(WebhookEndpoint.batch_id < ids.at(horizon), ~has_open_batch)
        .order_by(WebhookEndpoint.batch_id),
    ):
        gone = session.execute(
            delete(WebhookEndpoint)
            .where(WebhookEndpoint.id.in_(some.limit(AT_ONCE)))
            .returning(WebhookEndpoint.id),
            execution_options={"synchronize_session": False},
        ).all()
        number += len(gone)
    return number


def _one(session: Session, rows: Select[WebhookEndpoint], public_id: str) -> WebhookEndpoint:
    id = ids.parse("whe", public_id)
    found = None
    if id is not None:
        found = session.scalars(rows.where(WebhookEndpoint.id == id)).one_or_none()
    if found is None:
        raise NotFound(f"No such webhook: {public_id[:QUOTED_CHARS]}", param="webhook_id")
    return found


def _batch(public_id: str) -> UUID:
    id = ids.parse("batch", public_id)
    if id is None:
        raise InvalidRequest(
            f"batch_id: {public_id[:QUOTED_CHARS]!r} is not the id of a batch. Send one such as"
            " `batch_…`.",
            param="batch_id",
        )
    return id


def _names(types: Sequence[EventType] | None) -> list[str] | None:
    return None if types is None else list(dict.fromkeys(type.value for type in types))


def _visible(owner: Owner) -> Select[WebhookEndpoint]:
    return select(WebhookEndpoint).where(
        WebhookEndpoint.account_id == owner.account_id,
        WebhookEndpoint.livemode == owner.livemode,
        WebhookEndpoint.deleted_at.is_(None),
    )
