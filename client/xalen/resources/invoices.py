"""`client.invoices`: the invoices of batches that have ended, and their lines as CSV."""

from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Unpack

from openai import APIResponse, AsyncAPIResponse, AsyncOpenAI, OpenAI, RequestOptions
from openai.pagination import AsyncCursorPage, SyncCursorPage

from xalen._options import Overrides, options, path
from xalen.batch.download import STREAMED
from xalen.types.invoice import CreditNote, Invoice

if TYPE_CHECKING:
    # Private: `openai` exports no name for the type of its asynchronous lists.
    from openai._base_client import AsyncPaginator

PATH = "/batches/{batch_id}/invoice"
LINES = "/batches/{batch_id}/invoice/lines.csv"


CREDIT_NOTES = "/credit_notes"


class Page(Overrides, total=False):
    after: str
    # Objects of a page, 1 to 100; 20 by default.
    limit: int


class Invoices:
    def __init__(self, client: OpenAI) -> None:
        self._client = client

    def retrieve(self, batch_id: str, **overrides: Unpack[Overrides]) -> Invoice:
        """The invoice of a batch that has ended. The key needs the scope `billing`."""
        return self._client.get(
            path(PATH, batch_id=batch_id), options=options(overrides), cast_to=Invoice
        )

    def lines(self, batch_id: str, **overrides: Unpack[Overrides]) -> Iterator[bytes]:
        """The lines of a batch that has ended as CSV, in chunks: any number in constant memory.

        Each line has its tokens, prices, discount and amount; the amounts sum to the total.
        """
        answer: APIResponse[bytes] = self._client.get(
            path(LINES, batch_id=batch_id), options=_streamed(overrides), cast_to=APIResponse[bytes]
        )
        with closing(answer):
            yield from answer.iter_bytes()

    def list_credit_notes(self, **page: Unpack[Page]) -> SyncCursorPage[CreditNote]:
        """What was given back of batches' invoices, newest first."""
        return self._client.get_api_list(
            CREDIT_NOTES,
            model=CreditNote,
            page=SyncCursorPage[CreditNote],
            options=options(page, _query(page)),
        )


class AsyncInvoices:
    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client

    async def retrieve(self, batch_id: str, **overrides: Unpack[Overrides]) -> Invoice:
        """The invoice of a batch that has ended. The key needs the scope `billing`."""
        return await self._client.get(
            path(PATH, batch_id=batch_id), options=options(overrides), cast_to=Invoice
        )

    async def lines(self, batch_id: str, **overrides: Unpack[Overrides]) -> AsyncIterator[bytes]:
        """The lines of a batch that has ended as CSV, in chunks: any number in constant memory.

        Each line has its tokens, prices, discount and amount; the amounts sum to the total.
        """
        answer: AsyncAPIResponse[bytes] = await self._client.get(
            path(LINES, batch_id=batch_id),
            options=_streamed(overrides),
            cast_to=AsyncAPIResponse[bytes],
        )
        try:
            async for chunk in answer.iter_bytes():
                yield chunk
        finally:
            await answer.close()

    def list_credit_notes(
        self, **page: Unpack[Page]
    ) -> "AsyncPaginator[CreditNote, AsyncCursorPage[CreditNote]]":
        """What was given back of batches' invoices, newest first."""
        return self._client.get_api_list(
            CREDIT_NOTES,
            model=CreditNote,
            page=AsyncCursorPage[CreditNote],
            options=options(page, _query(page)),
        )


def _query(page: Page) -> dict[str, object]:
    return {"after": page.get("after"), "limit": page.get("limit")}


def _streamed(overrides: Overrides) -> RequestOptions:
    """The options of a request whose answer is not read by `openai`."""
    found = options(overrides)
    own = {"Accept": "text/csv", STREAMED: "stream"}
    found["headers"] = {**own, **overrides.get("extra_headers", {})}
    return found
