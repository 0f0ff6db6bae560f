"""`client.limits`: the account's quotas."""

from typing import Unpack

from openai import AsyncOpenAI, OpenAI

from xalen._options import Overrides, options
from xalen.types.limits import Limits as LimitsObject

PATH = "/limits"


class Limits:
    def __init__(self, client: OpenAI) -> None:
        self._client = client

    def retrieve(self, **overrides: Unpack[Overrides]) -> LimitsObject:
        """The used and the free part of each quota."""
        return self._client.get(PATH, options=options(overrides), cast_to=LimitsObject)


class AsyncLimits:
    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client

    async def retrieve(self, **overrides: Unpack[Overrides]) -> LimitsObject:
        """The used and the free part of each quota."""
        return await self._client.get(PATH, options=options(overrides), cast_to=LimitsObject)
