"""`client.estimates`: the cost and the errors of a file, before a batch is created."""

from typing import Unpack

from openai import AsyncOpenAI, OpenAI

from xalen._options import Overrides, split
from xalen.types.estimate import Estimate, EstimateFields

PATH = "/batches/estimate"


class NewEstimate(EstimateFields, Overrides):
    pass


class Estimates:
    def __init__(self, client: OpenAI) -> None:
        self._client = client

    def create(self, **fields: Unpack[NewEstimate]) -> Estimate:
        """What a batch of an uploaded file would cost, and its errors. Nothing runs."""
        body, options = split(fields)
        return self._client.post(PATH, body=body, options=options, cast_to=Estimate)


class AsyncEstimates:
    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client

    async def create(self, **fields: Unpack[NewEstimate]) -> Estimate:
        """What a batch of an uploaded file would cost, and its errors. Nothing runs."""
        body, options = split(fields)
        return await self._client.post(PATH, body=body, options=options, cast_to=Estimate)
