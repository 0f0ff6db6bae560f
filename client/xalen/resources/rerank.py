"""`client.rerank`: documents by their relevance to a query."""

from typing import Unpack

from openai import AsyncOpenAI, OpenAI

from xalen._options import Overrides, split
from xalen.types.rerank import RerankFields, RerankResponse

PATH = "/rerank"


class NewRerank(RerankFields, Overrides):
    pass


class Rerank:
    def __init__(self, client: OpenAI) -> None:
        self._client = client

    def create(self, **fields: Unpack[NewRerank]) -> RerankResponse:
        """Rank documents by their relevance to a query, the best first."""
        body, options = split(fields)
        return self._client.post(PATH, body=body, options=options, cast_to=RerankResponse)


class AsyncRerank:
    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client

    async def create(self, **fields: Unpack[NewRerank]) -> RerankResponse:
        """Rank documents by their relevance to a query, the best first."""
        body, options = split(fields)
        return await self._client.post(PATH, body=body, options=options, cast_to=RerankResponse)
