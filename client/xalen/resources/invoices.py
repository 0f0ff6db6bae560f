"""`client.invoices`: the invoices of batches that have ended."""

from typing import Unpack

from openai import AsyncOpenAI, OpenAI

from xalen._options import Overrides, options, path
from xalen.types.invoice import Invoice

PATH = "/batches/{batch_id}/invoice"


class Invoices:
    def __init__(self, client: OpenAI) -> None:
        self._client = client

    def retrieve(self, batch_id: str, **overrides: Unpack[Overrides]) -> Invoice:
        """The invoice of a batch that has ended. The key needs the scope `billing`."""
        return self._client.get(
            path(PATH, batch_id=batch_id), options=options(overrides), cast_to=Invoice
        )


class AsyncInvoices:
    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client

    async def retrieve(self, batch_id: str, **overrides: Unpack[Overrides]) -> Invoice:
        """The invoice of a batch that has ended. The key needs the scope `billing`."""
        return await self._client.get(
            path(PATH, batch_id=batch_id), options=options(overrides), cast_to=Invoice
        )
