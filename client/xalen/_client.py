"""`XALEN` and `AsyncXALEN`: `openai`'s clients with this API's address, key and resources."""

from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from typing import Any, TypedDict, Unpack

from openai import (
    DEFAULT_MAX_RETRIES,
    AsyncOpenAI,
    DefaultAsyncHttpxClient,
    DefaultHttpxClient,
    NotGiven,
    OpenAI,
    Timeout,
    not_given,
)

from xalen import _connection
from xalen.resources.batches import AsyncBatches, Batches
from xalen.resources.estimates import AsyncEstimates, Estimates
from xalen.resources.invoices import AsyncInvoices, Invoices
from xalen.resources.limits import AsyncLimits, Limits
from xalen.resources.rerank import AsyncRerank, Rerank
from xalen.resources.schedules import AsyncSchedules, Schedules
from xalen.resources.statements import AsyncStatements, Statements
from xalen.resources.webhooks import AsyncWebhooks, Webhooks

# Sent with every request that makes or changes something, and kept when `openai` repeats it: a
# batch whose answer was lost is not created, and billed, a second time.
IDEMPOTENCY_HEADER = "Idempotency-Key"


class Inherited(TypedDict, total=False):
    """Arguments of `openai`'s constructor that this API does not use.

    `with_options` passes them to the copy that it makes.
    """

    organization: str | None
    project: str | None
    admin_api_key: str | None
    workload_identity: Any
    websocket_base_url: Any
    _strict_response_validation: bool
    _enforce_credentials: bool


class XALEN(OpenAI):
    """A client of xalen-batch. Every method of `openai.OpenAI` is there too.

    `api_key` and `base_url` come from the arguments, XALEN_API_KEY and XALEN_BASE_URL, or the file
    of `xalen-batch up`, of which `live=True` uses the live key. OpenAIError if one is not found.
    """

    def __init__(
        self,
        *,
        api_key: str | Callable[[], str] | None = None,
        base_url: str | None = None,
        live: bool = False,
        timeout: float | Timeout | NotGiven | None = not_given,
        max_retries: int = DEFAULT_MAX_RETRIES,
        default_headers: Mapping[str, str] | None = None,
        default_query: Mapping[str, object] | None = None,
        http_client: DefaultHttpxClient | None = None,
        webhook_secret: str | None = None,
        **inherited: Unpack[Inherited],
    ) -> None:
        # `with_options` passes a URL of the HTTP client's.
        found = _connection.find(str(base_url or ""), api_key, live=live)
        super().__init__(
            api_key=api_key or str(found.api_key),
            base_url=found.base_url,
            timeout=timeout,
            max_retries=max_retries,
            default_headers=default_headers,
            default_query=default_query,
            http_client=http_client
            or (DefaultHttpxClient(trust_env=False) if _is_plain(found.base_url) else None),
            webhook_secret=webhook_secret,
            **inherited,
        )
        _forget_openai(self, default_headers, inherited)

    @cached_property
    def batches(self) -> Batches:
        return Batches(self)

    @cached_property
    def estimates(self) -> Estimates:
        return Estimates(self)

    @cached_property
    def invoices(self) -> Invoices:
        return Invoices(self)

    @cached_property
    def limits(self) -> Limits:
        return Limits(self)

    @cached_property
    def rerank(self) -> Rerank:
        return Rerank(self)

    @cached_property
    def schedules(self) -> Schedules:
        return Schedules(self)

    @cached_property
    def statements(self) -> Statements:
        return Statements(self)

    @cached_property
    def webhooks(self) -> Webhooks:
        return Webhooks(self)


class AsyncXALEN(AsyncOpenAI):
    """A client of xalen-batch for asyncio. Every method of `openai.AsyncOpenAI` is there too.

    Address and key are found as in `XALEN`.
    """

    def __init__(
        self,
        *,
        api_key: str | Callable[[], Awaitable[str]] | None = None,
        base_url: str | None = None,
        live: bool = False,
        timeout: float | Timeout | NotGiven | None = not_given,
        max_retries: int = DEFAULT_MAX_RETRIES,
        default_headers: Mapping[str, str] | None = None,
        default_query: Mapping[str, object] | None = None,
        http_client: DefaultAsyncHttpxClient | None = None,
        webhook_secret: str | None = None,
        **inherited: Unpack[Inherited],
    ) -> None:
        # `with_options` passes a URL of the HTTP client's.
        found = _connection.find(str(base_url or ""), api_key, live=live)
        super().__init__(
            api_key=api_key or str(found.api_key),
            base_url=found.base_url,
            timeout=timeout,
            max_retries=max_retries,
            default_headers=default_headers,
            default_query=default_query,
            http_client=http_client
            or (DefaultAsyncHttpxClient(trust_env=False) if _is_plain(found.base_url) else None),
            webhook_secret=webhook_secret,
            **inherited,
        )
        _forget_openai(self, default_headers, inherited)

    @cached_property
    def batches(self) -> AsyncBatches:
        return AsyncBatches(self)

    @cached_property
    def estimates(self) -> AsyncEstimates:
        return AsyncEstimates(self)

    @cached_property
    def invoices(self) -> AsyncInvoices:
        return AsyncInvoices(self)

    @cached_property
    def limits(self) -> AsyncLimits:
        return AsyncLimits(self)

    @cached_property
    def rerank(self) -> AsyncRerank:
        return AsyncRerank(self)

    @cached_property
    def schedules(self) -> AsyncSchedules:
        return AsyncSchedules(self)

    @cached_property
    def statements(self) -> AsyncStatements:
        return AsyncStatements(self)

    @cached_property
    def webhooks(self) -> AsyncWebhooks:
        return AsyncWebhooks(self)


def _is_plain(base_url: str) -> bool:
    """Whether the environment's proxies are left out: with http, they could read the key."""
    return base_url.startswith("http://")


def _forget_openai(
    client: OpenAI | AsyncOpenAI,
    default_headers: Mapping[str, str] | None,
    inherited: Inherited,
) -> None:
    """Take back what the constructor of `openai` reads from variables of another service.

    OPENAI_ADMIN_KEY, OPENAI_ORG_ID, OPENAI_PROJECT_ID, and OPENAI_CUSTOM_HEADERS, which may hold an
    Authorization.
    """
    client.admin_api_key = inherited.get("admin_api_key")
    client.organization = inherited.get("organization")
    client.project = inherited.get("project")
    client._custom_headers = default_headers or {}
    client._idempotency_header = IDEMPOTENCY_HEADER
