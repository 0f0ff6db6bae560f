"""`client.batches`: OpenAI's batches, and a whole batch in one call."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack, cast, overload

from openai import AsyncStream, NotFoundError, Omit, PermissionDeniedError, Stream, not_given, omit
from openai.pagination import AsyncCursorPage, SyncCursorPage
from openai.resources.batches import AsyncBatches as OpenAIAsyncBatches
from openai.resources.batches import Batches as OpenAIBatches
from openai.types import Batch, Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from xalen._errors import BatchFailed
from xalen._options import Overrides, path, split
from xalen._options import options as options_of
from xalen.batch.outage import PASSING, SILENCE
from xalen.batch.results import AsyncBatchResults, BatchResults
from xalen.batch.source import Requests, Source
from xalen.batch.watch import NO_STREAM, STREAM_SILENCE, WaitOptions, Watch
from xalen.resources.invoices import PATH as INVOICE
from xalen.types.invoice import Invoice
from xalen.types.rerank import RerankResponse
from xalen.types.schedule import ExecutionWindow, ExpiresAfter, OnInvalid
from xalen.types.webhook import BatchWebhook

if TYPE_CHECKING:
    # Private: `openai` exports no name for the type of its asynchronous lists.
    from openai._base_client import AsyncPaginator

Answer = TypeVar("Answer")
EVENTS, RETRY = "/batches/{batch_id}/events", "/batches/{batch_id}/retry"


class BatchOptions(TypedDict, total=False):
    # For bodies that name no model.
    model: str
    # `24h`, the default, or whole hours or days from `1h` to `7d`.
    completion_window: str
    metadata: Mapping[str, str]
    output_expires_after: ExpiresAfter
    # Hours in which lines may be started.
    execution_window: ExecutionWindow
    # What invalid lines do: `fail`, the default, runs nothing; `skip` runs the others.
    on_invalid: OnInvalid
    # Gets the events of the batch.
    webhook: BatchWebhook
    # The same key makes no second batch: a program that starts again finds the batch of its last
    # start. By default a new one.
    idempotency_key: str


class RunOptions(BatchOptions, WaitOptions):
    pass


class RetryOptions(Overrides, total=False):
    # Only lines that failed with these codes, as the invoice names them, such as `http_503`.
    codes: Sequence[str]
    # As in the first batch, if left out.
    completion_window: str
    metadata: Mapping[str, str]


class BatchFilters(TypedDict, total=False):
    """The conditions of a list, all of which a batch must meet."""

    status: str
    model: str
    endpoint: str
    # Unix seconds or ISO 8601; the first is included, the second is not.
    created_after: int | str
    created_before: int | str
    metadata: Mapping[str, str]
    schedule_id: str
    # `desc`, the default, begins with the newest.
    order: Literal["asc", "desc"]


class Batches(OpenAIBatches):
    @overload
    def run(
        self,
        requests: Requests,
        *,
        endpoint: Literal["/v1/chat/completions"],
        **options: Unpack[RunOptions],
    ) -> BatchResults[ChatCompletion]: ...
    @overload
    def run(
        self, requests: Requests, *, endpoint: Literal["/v1/rerank"], **options: Unpack[RunOptions]
    ) -> BatchResults[RerankResponse]: ...
    @overload
    def run(
        self,
        requests: Requests,
        *,
        endpoint: Literal["/v1/responses"],
        **options: Unpack[RunOptions],
    ) -> BatchResults[Response]: ...
    @overload
    def run(
        self,
        requests: Requests,
        *,
        endpoint: Literal["/v1/embeddings"],
        **options: Unpack[RunOptions],
    ) -> BatchResults[CreateEmbeddingResponse]: ...
    @overload
    def run(
        self,
        requests: Requests,
        *,
        endpoint: Literal["/v1/completions"],
        **options: Unpack[RunOptions],
    ) -> BatchResults[Completion]: ...
    @overload
    def run(
        self, requests: Requests, *, endpoint: str | None = None, **options: Unpack[RunOptions]
    ) -> BatchResults[Any]: ...
    def run(
        self, requests: Requests, *, endpoint: str | None = None, **options: Unpack[RunOptions]
    ) -> BatchResults[Any]:
        """Run a batch and wait for its end.

        `requests`: the path of a JSONL file, which is sent as it is; or lines, of which `body`
        alone is required; or bodies. Lines without a `custom_id` become `request-1` and so on.
        Without `endpoint`, that of the first line.

        Raises BatchFailed if validation refuses the batch, StillRunning after `max_wait_seconds`.
        While it waits and while results are read, a lost connection costs nothing but time.
        """
        source = Source.of(requests, endpoint, options.get("model"))
        return self._results(self._submitted(source, options).id, options, source)

    def submit(
        self, requests: Requests, *, endpoint: str | None = None, **options: Unpack[BatchOptions]
    ) -> Batch:
        """Upload requests and create their batch, as `run` does. Does not wait."""
        return self._submitted(Source.of(requests, endpoint, options.get("model")), options)

    def wait(self, batch_id: str, **options: Unpack[WaitOptions]) -> BatchResults[Any]:
        """Wait for the end of a batch, as `run` does; at once if it has ended."""
        return self._results(batch_id, options, None)

    def events(self, batch_id: str, **overrides: Unpack[Overrides]) -> Stream[Batch]:
        """The states of a batch: now, with each change, and at its end.

        The stream may end before the batch, as when the server stops; then ask again. `run` and
        `wait` do that by themselves.
        """
        return self._client.get(
            path(EVENTS, batch_id=batch_id),
            options=options_of(overrides),
            cast_to=Batch,
            stream=True,
            stream_cls=Stream[Batch],
        )

    def retry(self, batch_id: str, **asked: Unpack[RetryOptions]) -> Batch:
        """Create a batch of the lines of an ended batch that failed, expired or were cancelled.

        It is billed by itself; `wait` waits for it. Each line is retried once: retry the new batch
        for lines that fail again.
        """
        body, options = split(asked)
        return self._client.post(
            path(RETRY, batch_id=batch_id), body=body, options=options, cast_to=Batch
        )

    def _follow(self, watch: Watch) -> Batch | None:
        """Report the events of a batch. The batch at its end; None if the stream ended first."""
        try:
            with self.events(watch.batch_id, timeout=STREAM_SILENCE) as events:
                for batch in events:
                    if watch.has_ended(batch):
                        return batch
        except NO_STREAM:
            pass
        watch.stream_is_over()
        return None

    def list(
        self,
        *,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        extra_headers: Any = None,
        extra_query: Any = None,
        extra_body: Any = None,
        timeout: Any = not_given,
        **filters: Unpack[BatchFilters],
    ) -> SyncCursorPage[Batch]:
        """Batches, as in `openai`, and only those that meet the filters."""
        return super().list(
            after=after,
            limit=limit,
            extra_headers=extra_headers,
            extra_query={**filters, **(extra_query or {})},
            extra_body=extra_body,
            timeout=timeout,
        )

    def _submitted(self, source: Source, options: BatchOptions) -> Batch:
        file = self._client.files.create(
            file=(source.name, source.file),
            purpose="batch",
            extra_headers=_idempotency(options, "file"),
        )
        return self.create(**_creation(source, file.id, options))

    def _results(
        self, batch_id: str, options: WaitOptions, source: Source | None
    ) -> BatchResults[Any]:
        watch = Watch(batch_id, options)
        with watch.telling():
            while True:
                batch = _persistently(lambda: self.retrieve(batch_id, timeout=SILENCE), watch)
                if watch.has_ended(batch):
                    break
                if watch.begins_stream():
                    last = self._follow(watch)
                    if last is not None:
                        batch = last
                        break
                    continue
                time.sleep(watch.pause())
        if batch.status == "failed":
            raise BatchFailed(batch)
        invoice = _persistently(lambda: self._invoice(batch_id), watch)
        return BatchResults(self._client, batch, invoice, source)

    def _invoice(self, batch_id: str) -> Invoice | None:
        try:
            return self._client.get(
                path(INVOICE, batch_id=batch_id), options={"timeout": SILENCE}, cast_to=Invoice
            )
        except (PermissionDeniedError, NotFoundError):
            return None


class AsyncBatches(OpenAIAsyncBatches):
    @overload
    async def run(
        self,
        requests: Requests,
        *,
        endpoint: Literal["/v1/chat/completions"],
        **options: Unpack[RunOptions],
    ) -> AsyncBatchResults[ChatCompletion]: ...
    @overload
    async def run(
        self, requests: Requests, *, endpoint: Literal["/v1/rerank"], **options: Unpack[RunOptions]
    ) -> AsyncBatchResults[RerankResponse]: ...
    @overload
    async def run(
        self,
        requests: Requests,
        *,
        endpoint: Literal["/v1/responses"],
        **options: Unpack[RunOptions],
    ) -> AsyncBatchResults[Response]: ...
    @overload
    async def run(
        self,
        requests: Requests,
        *,
        endpoint: Literal["/v1/embeddings"],
        **options: Unpack[RunOptions],
    ) -> AsyncBatchResults[CreateEmbeddingResponse]: ...
    @overload
    async def run(
        self,
        requests: Requests,
        *,
        endpoint: Literal["/v1/completions"],
        **options: Unpack[RunOptions],
    ) -> AsyncBatchResults[Completion]: ...
    @overload
    async def run(
        self, requests: Requests, *, endpoint: str | None = None, **options: Unpack[RunOptions]
    ) -> AsyncBatchResults[Any]: ...
    async def run(
        self, requests: Requests, *, endpoint: str | None = None, **options: Unpack[RunOptions]
    ) -> AsyncBatchResults[Any]:
        """Run a batch and wait for its end, as `Batches.run` does."""
        source = await self._source(requests, endpoint, options)
        batch = await self._submitted(source, options)
        return await self._results(batch.id, options, source)

    async def submit(
        self, requests: Requests, *, endpoint: str | None = None, **options: Unpack[BatchOptions]
    ) -> Batch:
        """Upload requests and create their batch, as `run` does. Does not wait."""
        return await self._submitted(await self._source(requests, endpoint, options), options)

    async def wait(self, batch_id: str, **options: Unpack[WaitOptions]) -> AsyncBatchResults[Any]:
        """Wait for the end of a batch, as `run` does; at once if it has ended."""
        return await self._results(batch_id, options, None)

    def list(
        self,
        *,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        extra_headers: Any = None,
        extra_query: Any = None,
        extra_body: Any = None,
        timeout: Any = not_given,
        **filters: Unpack[BatchFilters],
    ) -> "AsyncPaginator[Batch, AsyncCursorPage[Batch]]":
        """Batches, as in `openai`, and only those that meet the filters."""
        return super().list(
            after=after,
            limit=limit,
            extra_headers=extra_headers,
            extra_query={**filters, **(extra_query or {})},
            extra_body=extra_body,
            timeout=timeout,
        )

    async def _source(
        self, requests: Requests, endpoint: str | None, options: BatchOptions
    ) -> Source:
        # Writing many requests takes seconds, which the event loop has no time for.
        return await asyncio.to_thread(Source.of, requests, endpoint, options.get("model"))

    async def events(self, batch_id: str, **overrides: Unpack[Overrides]) -> AsyncStream[Batch]:
        """The states of a batch: now, with each change, and at its end.

        The stream may end before the batch, as when the server stops; then ask again. `run` and
        `wait` do that by themselves.
        """
        return await self._client.get(
            path(EVENTS, batch_id=batch_id),
            options=options_of(overrides),
            cast_to=Batch,
            stream=True,
            stream_cls=AsyncStream[Batch],
        )

    async def retry(self, batch_id: str, **asked: Unpack[RetryOptions]) -> Batch:
        """Create a batch of the lines of an ended batch that failed, expired or were cancelled.

        It is billed by itself; `wait` waits for it. Each line is retried once: retry the new batch
        for lines that fail again.
        """
        body, options = split(asked)
        return await self._client.post(
            path(RETRY, batch_id=batch_id), body=body, options=options, cast_to=Batch
        )

    async def _follow(self, watch: Watch) -> Batch | None:
        """Report the events of a batch. The batch at its end; None if the stream ended first."""
        try:
            async with await self.events(watch.batch_id, timeout=STREAM_SILENCE) as events:
                async for batch in events:
                    if watch.has_ended(batch):
                        return batch
        except NO_STREAM:
            pass
        watch.stream_is_over()
        return None

    async def _submitted(self, source: Source, options: BatchOptions) -> Batch:
        file = await self._client.files.create(
            file=(source.name, source.file),
            purpose="batch",
            extra_headers=_idempotency(options, "file"),
        )
        return await self.create(**_creation(source, file.id, options))

    async def _results(
        self, batch_id: str, options: WaitOptions, source: Source | None
    ) -> AsyncBatchResults[Any]:
        watch = Watch(batch_id, options)
        with watch.telling():
            while True:
                batch = await _async_persistently(
                    lambda: self.retrieve(batch_id, timeout=SILENCE), watch
                )
                if watch.has_ended(batch):
                    break
                if watch.begins_stream():
                    last = await self._follow(watch)
                    if last is not None:
                        batch = last
                        break
                    continue
                await asyncio.sleep(watch.pause())
        if batch.status == "failed":
            raise BatchFailed(batch)
        invoice = await _async_persistently(lambda: self._invoice(batch_id), watch)
        return AsyncBatchResults(self._client, batch, invoice, source)

    async def _invoice(self, batch_id: str) -> Invoice | None:
        try:
            return await self._client.get(
                path(INVOICE, batch_id=batch_id), options={"timeout": SILENCE}, cast_to=Invoice
            )
        except (PermissionDeniedError, NotFoundError):
            return None


def _persistently(ask: Callable[[], Answer], watch: Watch) -> Answer:
    """The answer of a request, which is repeated while the server is away."""
    while True:
        try:
            return ask()
        except PASSING as error:
            time.sleep(watch.pause_after(error))


async def _async_persistently(ask: Callable[[], Awaitable[Answer]], watch: Watch) -> Answer:
    while True:
        try:
            return await ask()
        except PASSING as error:
            await asyncio.sleep(watch.pause_after(error))


def _idempotency(options: BatchOptions, what: str) -> dict[str, str]:
    """The header with the caller's key. Without one, the client makes a key for each request."""
    key = options.get("idempotency_key")
    # A key belongs to one request, and there are two.
    return {} if key is None else {"Idempotency-Key": f"{key}.{what}"}


def _creation(source: Source, file_id: str, options: BatchOptions) -> dict[str, Any]:
    """The arguments of `create`."""
    standard = ("metadata", "output_expires_after")
    extensions = ("execution_window", "on_invalid", "webhook")
    given = cast(dict[str, Any], options)
    return {
        "input_file_id": file_id,
        "endpoint": source.endpoint,
        "completion_window": options.get("completion_window", "24h"),
        **{name: given[name] for name in standard if given.get(name) is not None},
        "extra_body": {name: given[name] for name in extensions if given.get(name) is not None},
        "extra_headers": _idempotency(options, "batch"),
    }
