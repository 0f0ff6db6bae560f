"""`client.webhooks`: OpenAI's methods, and `endpoints` with those of this API."""

from functools import cached_property
from typing import TYPE_CHECKING, Unpack

from openai import AsyncOpenAI, OpenAI
from openai.pagination import AsyncCursorPage, SyncCursorPage
from openai.resources.webhooks import AsyncWebhooks as OpenAIAsyncWebhooks
from openai.resources.webhooks import Webhooks as OpenAIWebhooks

from xalen._options import Overrides, options, path, split
from xalen.types.webhook import (
    DeletedWebhook,
    DeliveryState,
    NewlySecretWebhook,
    NewWebhook,
    Replayed,
    Time,
    Webhook,
    WebhookChanges,
    WebhookDelivery,
    WebhookReplay,
)

if TYPE_CHECKING:
    # Private: `openai` exports no name for the type of its asynchronous lists.
    from openai._base_client import AsyncPaginator

PATH = "/webhooks"
ONE = "/webhooks/{webhook_id}"
REDELIVER = f"{ONE}/deliveries/{{event_id}}/redeliver"


class Create(NewWebhook, Overrides):
    pass


class Update(WebhookChanges, Overrides):
    pass


class Page(Overrides, total=False):
    after: str
    # Objects of a page, 1 to 100; 20 by default.
    limit: int


class Endpoints:
    """`client.webhooks.endpoints`: the URLs that get the account's events."""

    def __init__(self, client: OpenAI) -> None:
        self._client = client

    def create(self, **fields: Unpack[Create]) -> NewlySecretWebhook:
        """Post the account's events to a URL from now on. The answer has the secret."""
        body, options = split(fields)
        return self._client.post(PATH, body=body, options=options, cast_to=NewlySecretWebhook)

    def retrieve(self, webhook_id: str, **overrides: Unpack[Overrides]) -> Webhook:
        return self._client.get(
            path(ONE, webhook_id=webhook_id), options=options(overrides), cast_to=Webhook
        )

    def update(self, webhook_id: str, **fields: Unpack[Update]) -> Webhook:
        """Change the fields that are given. `enabled=True` forgets its failures."""
        body, options = split(fields)
        return self._client.patch(
            path(ONE, webhook_id=webhook_id), body=body, options=options, cast_to=Webhook
        )

    def list(self, *, batch_id: str | None = None, **page: Unpack[Page]) -> SyncCursorPage[Webhook]:
        """Webhooks, newest first. `batch_id`: that which this batch brought."""
        return self._client.get_api_list(
            PATH,
            model=Webhook,
            page=SyncCursorPage[Webhook],
            options=options(page, _query(page, batch_id=batch_id)),
        )

    def delete(self, webhook_id: str, **overrides: Unpack[Overrides]) -> DeletedWebhook:
        """Delete it with its secret. What waits for it is not sent."""
        return self._client.delete(
            path(ONE, webhook_id=webhook_id), options=options(overrides), cast_to=DeletedWebhook
        )

    def rotate(
        self, webhook_id: str, *, overlap_seconds: int = 86_400, **overrides: Unpack[Overrides]
    ) -> NewlySecretWebhook:
        """Make a new secret. The old one signs as well for the overlap."""
        return self._client.post(
            path(f"{ONE}/rotate", webhook_id=webhook_id),
            body={"overlap_seconds": overlap_seconds},
            options=options(overrides),
            cast_to=NewlySecretWebhook,
        )

    def test(self, webhook_id: str, **overrides: Unpack[Overrides]) -> WebhookDelivery:
        """Send it the event `xalen.webhook.test`."""
        return self._client.post(
            path(f"{ONE}/test", webhook_id=webhook_id),
            options=options(overrides),
            cast_to=WebhookDelivery,
        )

    def list_deliveries(
        self, webhook_id: str, *, state: DeliveryState | None = None, **page: Unpack[Page]
    ) -> SyncCursorPage[WebhookDelivery]:
        """Its deliveries, the newest event first."""
        return self._client.get_api_list(
            path(f"{ONE}/deliveries", webhook_id=webhook_id),
            model=WebhookDelivery,
            page=SyncCursorPage[WebhookDelivery],
            options=options(page, _query(page, state=state)),
        )

    def redeliver(
        self, webhook_id: str, event_id: str, **overrides: Unpack[Overrides]
    ) -> WebhookDelivery:
        """Send it an event again, with all attempts anew."""
        return self._client.post(
            path(
                f"{ONE}/deliveries/{{event_id}}/redeliver", webhook_id=webhook_id, event_id=event_id
            ),
            options=options(overrides),
            cast_to=WebhookDelivery,
        )

    def replay(
        self,
        webhook_id: str,
        *,
        from_: Time,
        to: Time,
        state: Replayed = "failed",
        **overrides: Unpack[Overrides],
    ) -> WebhookReplay:
        """Send it the events of a span again: those that did not arrive, or with `all` all."""
        return self._client.post(
            path(f"{ONE}/replay", webhook_id=webhook_id),
            body={"from": from_, "to": to, "state": state},
            options=options(overrides),
            cast_to=WebhookReplay,
        )


class AsyncEndpoints:
    """`client.webhooks.endpoints`: the URLs that get the account's events."""

    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client

    async def create(self, **fields: Unpack[Create]) -> NewlySecretWebhook:
        """Post the account's events to a URL from now on. The answer has the secret."""
        body, options = split(fields)
        return await self._client.post(PATH, body=body, options=options, cast_to=NewlySecretWebhook)

    async def retrieve(self, webhook_id: str, **overrides: Unpack[Overrides]) -> Webhook:
        return await self._client.get(
            path(ONE, webhook_id=webhook_id), options=options(overrides), cast_to=Webhook
        )

    async def update(self, webhook_id: str, **fields: Unpack[Update]) -> Webhook:
        """Change the fields that are given. `enabled=True` forgets its failures."""
        body, options = split(fields)
        return await self._client.patch(
            path(ONE, webhook_id=webhook_id), body=body, options=options, cast_to=Webhook
        )

    def list(
        self, *, batch_id: str | None = None, **page: Unpack[Page]
    ) -> "AsyncPaginator[Webhook, AsyncCursorPage[Webhook]]":
        """Webhooks, newest first. `batch_id`: that which this batch brought."""
        return self._client.get_api_list(
            PATH,
            model=Webhook,
            page=AsyncCursorPage[Webhook],
            options=options(page, _query(page, batch_id=batch_id)),
        )

    async def delete(self, webhook_id: str, **overrides: Unpack[Overrides]) -> DeletedWebhook:
        """Delete it with its secret. What waits for it is not sent."""
        return await self._client.delete(
            path(ONE, webhook_id=webhook_id), options=options(overrides), cast_to=DeletedWebhook
        )

    async def rotate(
        self, webhook_id: str, *, overlap_seconds: int = 86_400, **overrides: Unpack[Overrides]
    ) -> NewlySecretWebhook:
        """Make a new secret. The old one signs as well for the overlap."""
        return await self._client.post(
            path(f"{ONE}/rotate", webhook_id=webhook_id),
            body={"overlap_seconds": overlap_seconds},
            options=options(overrides),
            cast_to=NewlySecretWebhook,
        )

    async def test(self, webhook_id: str, **overrides: Unpack[Overrides]) -> WebhookDelivery:
        """Send it the event `xalen.webhook.test`."""
        return await self._client.post(
            path(f"{ONE}/test", webhook_id=webhook_id),
            options=options(overrides),
            cast_to=WebhookDelivery,
        )

    def list_deliveries(
        self, webhook_id: str, *, state: DeliveryState | None = None, **page: Unpack[Page]
    ) -> "AsyncPaginator[WebhookDelivery, AsyncCursorPage[WebhookDelivery]]":
        """Its deliveries, the newest event first."""
        return self._client.get_api_list(
            path(f"{ONE}/deliveries", webhook_id=webhook_id),
            model=WebhookDelivery,
            page=AsyncCursorPage[WebhookDelivery],
            options=options(page, _query(page, state=state)),
        )

    async def redeliver(
        self, webhook_id: str, event_id: str, **overrides: Unpack[Overrides]
    ) -> WebhookDelivery:
        """Send it an event again, with all attempts anew."""
        return await self._client.post(
            path(
                f"{ONE}/deliveries/{{event_id}}/redeliver", webhook_id=webhook_id, event_id=event_id
            ),
            options=options(overrides),
            cast_to=WebhookDelivery,
        )

    async def replay(
        self,
        webhook_id: str,
        *,
        from_: Time,
        to: Time,
        state: Replayed = "failed",
        **overrides: Unpack[Overrides],
    ) -> WebhookReplay:
        """Send it the events of a span again: those that did not arrive, or with `all` all."""
        return await self._client.post(
            path(f"{ONE}/replay", webhook_id=webhook_id),
            body={"from": from_, "to": to, "state": state},
            options=options(overrides),
            cast_to=WebhookReplay,
        )


class Webhooks(OpenAIWebhooks):
    """OpenAI's methods, which this API serves too. `endpoints` has what goes beyond them."""

    @cached_property
    def endpoints(self) -> Endpoints:
        return Endpoints(self._client)


class AsyncWebhooks(OpenAIAsyncWebhooks):
    """OpenAI's methods, which this API serves too. `endpoints` has what goes beyond them."""

    @cached_property
    def endpoints(self) -> AsyncEndpoints:
        return AsyncEndpoints(self._client)


def _query(page: Page, **filters: str | None) -> dict[str, object]:
    return {"after": page.get("after"), "limit": page.get("limit"), **filters}
