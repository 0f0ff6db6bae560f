"""`client.statements`: the sums of a month's invoices."""

from collections.abc import AsyncIterator, Iterator
from typing import Unpack

from openai import AsyncOpenAI, OpenAI

from xalen._options import Overrides, options, path
from xalen.types.invoice import Statement, StatementLine

PATH = "/statements/{month}"
PAGE = 1_000


class Page(Overrides, total=False):
    # Lines of a page, at most 1,000; all lines if left out.
    limit: int
    # The `invoice_id` or `credit_note_id` of the last line of the page before; with `limit`.
    after: str


class Statements:
    def __init__(self, client: OpenAI) -> None:
        self._client = client

    def retrieve(self, month: str, **page: Unpack[Page]) -> Statement:
        """The statement of a month, `2026-11`; a draft until the month is over."""
        query = {"limit": page.get("limit"), "after": page.get("after")}
        return self._client.get(
            path(PATH, month=month), options=options(page, query), cast_to=Statement
        )

    def lines(self, month: str, **overrides: Unpack[Overrides]) -> Iterator[StatementLine]:
        """The lines of a statement, over its pages: any number of them in constant memory."""
        page = self.retrieve(month, limit=PAGE, **overrides)
        yield from page.lines
        while after := _after(page):
            page = self.retrieve(month, limit=PAGE, after=after, **overrides)
            yield from page.lines


class AsyncStatements:
    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client

    async def retrieve(self, month: str, **page: Unpack[Page]) -> Statement:
        """The statement of a month, `2026-11`; a draft until the month is over."""
        query = {"limit": page.get("limit"), "after": page.get("after")}
        return await self._client.get(
            path(PATH, month=month), options=options(page, query), cast_to=Statement
        )

    async def lines(
        self, month: str, **overrides: Unpack[Overrides]
    ) -> AsyncIterator[StatementLine]:
        """The lines of a statement, over its pages: any number of them in constant memory."""
        page = await self.retrieve(month, limit=PAGE, **overrides)
        for line in page.lines:
            yield line
        while after := _after(page):
            page = await self.retrieve(month, limit=PAGE, after=after, **overrides)
            for line in page.lines:
                yield line


def _after(page: Statement) -> str | None:
    """The id behind which the next page begins; None after the last page."""
    if not page.has_more or not page.lines:
        return None
    last = page.lines[-1]
    return last.invoice_id or last.credit_note_id
