"""The results of a batch that has ended."""

from collections.abc import AsyncIterator, Iterator
from typing import Generic, TypeVar

from openai import AsyncOpenAI, BaseModel, NotFoundError, OpenAI
from openai.types import Batch

from xalen.batch import download
from xalen.batch.join import Join, Side
from xalen.batch.source import Source
from xalen.types.invoice import Invoice
from xalen.types.results import ANSWERS, LineResult

T = TypeVar("T")


class _Results:
    def __init__(
        self, batch: Batch, invoice: Invoice | None, source: Source | None, *, is_merged: bool
    ) -> None:
        self.batch = batch
        # None for a key without the scope `billing`.
        self.invoice = invoice
        self._source = source
        self._is_merged = is_merged

    def _join(self) -> Join:
        return Join(ANSWERS.get(self.batch.endpoint, BaseModel))

    def _sent(self) -> Iterator[bytes] | None:
        """The lines as they were sent; None if only the server still has them."""
        return self._source.lines() if self._source and self._source.is_unchanged else None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.batch.id}, {self.batch.status}>"


class BatchResults(_Results, Generic[T]):
    """Iterating gives the result of each line, in the order of the input.

    The lines are read from the server while they are iterated, each time anew, in memory that does
    not grow with the batch. A broken connection is resumed.
    """

    def __init__(
        self,
        client: OpenAI,
        batch: Batch,
        invoice: Invoice | None,
        source: Source | None,
        *,
        is_merged: bool = False,
    ) -> None:
        super().__init__(batch, invoice, source, is_merged=is_merged)
        self._client = client

    def __iter__(self) -> Iterator[LineResult[T]]:
        batch = self.batch
        lines = {
            Side.REQUESTS: self._sent() or self._stored(),
            Side.OUTPUT: download.lines(self._client, batch.output_file_id),
            Side.ERRORS: download.lines(self._client, batch.error_file_id),
        }
        if self._is_merged:
            # They have the invalid lines too, as the error file has.
            lines[Side.OUTPUT] = download.lines(self._client, None)
            lines[Side.ERRORS] = download.merged_lines(self._client, batch.id)
        join = self._join()
        while not join.is_over:
            for side in join.wanted():
                join.put(side, next(lines[side], None))
            if (result := join.take()) is not None:
                yield result

    def _stored(self) -> Iterator[bytes]:
        try:
            yield from download.lines(self._client, self.batch.input_file_id)
        except NotFoundError:
            # It was deleted, or has expired.
            return


class AsyncBatchResults(_Results, Generic[T]):
    """`async for` gives the result of each line, in the order of the input.

    The lines are read from the server while they are iterated, each time anew, in memory that does
    not grow with the batch. A broken connection is resumed.
    """

    def __init__(
        self,
        client: AsyncOpenAI,
        batch: Batch,
        invoice: Invoice | None,
        source: Source | None,
        *,
        is_merged: bool = False,
    ) -> None:
        super().__init__(batch, invoice, source, is_merged=is_merged)
        self._client = client

    async def __aiter__(self) -> AsyncIterator[LineResult[T]]:
        batch = self.batch
        lines = {
            Side.REQUESTS: self._stored(),
            Side.OUTPUT: download.async_lines(self._client, batch.output_file_id),
            Side.ERRORS: download.async_lines(self._client, batch.error_file_id),
        }
        if self._is_merged:
            # They have the invalid lines too, as the error file has.
            lines[Side.OUTPUT] = download.async_lines(self._client, None)
            lines[Side.ERRORS] = download.async_merged_lines(self._client, batch.id)
        join = self._join()
        while not join.is_over:
            for side in join.wanted():
                join.put(side, await anext(lines[side], None))
            if (result := join.take()) is not None:
                yield result

    async def _stored(self) -> AsyncIterator[bytes]:
        if (sent := self._sent()) is not None:
            for line in sent:
                yield line
            return
        try:
            async for line in download.async_lines(self._client, self.batch.input_file_id):
                yield line
        except NotFoundError:
            # It was deleted, or has expired.
            return
