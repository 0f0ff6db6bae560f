"""`client.batches`: OpenAI's batches, and a whole batch in one call."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from openai import (
    AsyncStream,
    NotFoundError,
    Omit,
    PermissionDeniedError,
    Stream,
    not_given,
    omit,
)
from openai.pagination import AsyncCursorPage, AsyncPage, SyncCursorPage, SyncPage
from openai.resources.batches import AsyncBatches as OpenAIAsyncBatches
from openai.resources.batches import Batches as OpenAIBatches
from openai.types import Batch, Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from xalen._errors import BatchFailed
from xalen._options import Overrides, path, split
from xalen._options import options as options_of
from xalen.batch import upload
from xalen.batch.options import BatchOptions, RetryOptions, RunOptions, creation
from xalen.batch.outage import PASSING, SILENCE
from xalen.batch.results import AsyncBatchResults, BatchResults
from xalen.batch.source import Requests, Source
from xalen.batch.watch import NO_STREAM, STREAM_SILENCE, WaitOptions, Watch, rest_of
from xalen.resources.invoices import PATH as INVOICE
from xalen.types.batch_filters import BatchFilters
from xalen.types.invoice import Invoice
from xalen.types.rerank import RerankResponse

if TYPE_CHECKING:
    # Private: `openai` exports no name for the type of its asynchronous lists.
    from openai._base_client import AsyncPaginator

Answer = TypeVar("Answer")
EVENTS = "/batches/{batch_id}/events"
RETRY, RETRIES = "/batches/{batch_id}/retry", "/batches/{batch_id}/retries"


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

    def wait(
        self, batch_id: str, *, merged: bool = False, **options: Unpack[WaitOptions]
    ) -> BatchResults[Any]:
        """Wait for the end of a batch, as `run` does; at once if it has ended.

        `merged`: wait for its retries too, and give each line once, with its last result.
        """
        began = time.monotonic()
        results = self._results(batch_id, options, None, is_merged=merged)
        if merged:
            for retry in self.retries(batch_id):
                self._ended(Watch(retry.id, rest_of(options, began)))
        return results

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

    def retries(self, batch_id: str, **overrides: Unpack[Overrides]) -> SyncPage[Batch]:
        """The retries of a batch and of its retries, the oldest first."""
        return self._client.get_api_list(
            path(RETRIES, batch_id=batch_id),
            model=Batch,
            page=SyncPage[Batch],
            options=options_of(overrides),
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

    def _submitted(self, source: Source, options: BatchOptions) -> Batch:
        file_id = upload.send(self._client, source, options.get("idempotency_key"))
        return self.create(**creation(source, file_id, options))

    def _results(
        self,
        batch_id: str,
        options: WaitOptions,
        source: Source | None,
        *,
        is_merged: bool = False,
    ) -> BatchResults[Any]:
        watch = Watch(batch_id, options)
        batch = self._ended(watch)
        if batch.status == "failed":
            raise BatchFailed(batch)
        invoice = _persistently(lambda: self._invoice(batch_id), watch)
        return BatchResults(self._client, batch, invoice, source, is_merged=is_merged)

    def _ended(self, watch: Watch) -> Batch:
        """The batch at its end, for which this waits."""
        with watch.telling():
            while True:
                batch = _persistently(lambda: self.retrieve(watch.batch_id, timeout=SILENCE), watch)
                if watch.has_ended(batch):
                    return batch
                if watch.begins_stream():
                    last = self._follow(watch)
                    if last is not None:
                        return last
                    continue
                time.sleep(watch.pause())

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

    async def wait(
        self, batch_id: str, *, merged: bool = False, **options: Unpack[WaitOptions]
    ) -> AsyncBatchResults[Any]:
        """Wait for the end of a batch, as `Batches.wait` does."""
        began = time.monotonic()
        results = await self._results(batch_id, options, None, is_merged=merged)
        if merged:
            async for retry in self.retries(batch_id):
                await self._ended(Watch(retry.id, rest_of(options, began)))
        return results

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

    def retries(
        self, batch_id: str, **overrides: Unpack[Overrides]
    ) -> "AsyncPaginator[Batch, AsyncPage[Batch]]":
        """The retries of a batch and of its retries, the oldest first."""
        return self._client.get_api_list(
            path(RETRIES, batch_id=batch_id),
            model=Batch,
            page=AsyncPage[Batch],
            options=options_of(overrides),
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
        file_id = await upload.async_send(self._client, source, options.get("idempotency_key"))
        return await self.create(**creation(source, file_id, options))

    async def _results(
        self,
        batch_id: str,
        options: WaitOptions,
        source: Source | None,
        *,
        is_merged: bool = False,
    ) -> AsyncBatchResults[Any]:
        watch = Watch(batch_id, options)
        batch = await self._ended(watch)
        if batch.status == "failed":
            raise BatchFailed(batch)
        invoice = await _async_persistently(lambda: self._invoice(batch_id), watch)
        return AsyncBatchResults(self._client, batch, invoice, source, is_merged=is_merged)

    async def _ended(self, watch: Watch) -> Batch:
        """The batch at its end, for which this waits."""
        with watch.telling():
            while True:
                batch = await _async_persistently(
                    lambda: self.retrieve(watch.batch_id, timeout=SILENCE), watch
                )
                if watch.has_ended(batch):
                    return batch
                if watch.begins_stream():
                    last = await self._follow(watch)
                    if last is not None:
                        return last
                    continue
                await asyncio.sleep(watch.pause())

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
