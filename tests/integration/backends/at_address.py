"""OpenAI backends for a server at a given address."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from xalen_batch import catalog
from xalen_batch.backends.openai import OpenAIBackend
from xalen_batch.catalog import Model


def model_at(base_url: str | None, id: str = "mistral-small-3-1", **backend: Any) -> Model:
    model = catalog.read(None)[id]
    return model.model_copy(
        update={
            "backend": model.backend.model_copy(
                update={"kind": "openai", "base_url": base_url, **backend}
            )
        }
    )


@contextlib.asynccontextmanager
async def backend_at(
    base_url: str, id: str = "mistral-small-3-1", **backend: Any
) -> AsyncIterator[OpenAIBackend]:
    made = OpenAIBackend(model_at(base_url, id, **backend))
    try:
        yield made
    finally:
        await made.close()
