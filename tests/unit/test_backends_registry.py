"""Which backend a model runs on."""

import asyncio
from collections.abc import Callable

import pytest

from xalen_batch import catalog
from xalen_batch.backends import registry
from xalen_batch.backends.openai import OpenAIBackend
from xalen_batch.backends.registry import backend_for
from xalen_batch.backends.rerank_chat import RerankChat
from xalen_batch.backends.simulated.backend import SimulatedBackend
from xalen_batch.errors import ConfigError

MODELS = catalog.read(None)
MISTRAL, BGE = MODELS["mistral-small-3-1"], MODELS["bge-reranker-v2"]


def on_loop(check: Callable[[], None]) -> None:
    async def main() -> None:
        try:
            check()
        finally:
            await registry.close_all()

    asyncio.run(main())


def test_test_mode_is_always_simulated_and_live_mode_is_what_the_catalog_says() -> None:
    def check() -> None:
        assert isinstance(backend_for(MISTRAL, False), SimulatedBackend)
        assert isinstance(backend_for(MISTRAL, True), OpenAIBackend)
        simulated = MISTRAL.model_copy(update={"backend": MISTRAL.backend.model_copy(update={"kind": "simulated"})})
        assert isinstance(backend_for(simulated, True), SimulatedBackend)

    on_loop(check)


def test_rerankers_take_chats_as_well() -> None:
    def check() -> None:
        for livemode, inner in ((False, SimulatedBackend), (True, OpenAIBackend)):
            backend = backend_for(BGE, livemode)
            assert isinstance(backend, RerankChat)
            assert isinstance(backend.inner, inner)

    on_loop(check)


def test_a_backend_is_made_once_for_a_model_and_mode() -> None:
    def check() -> None:
        assert backend_for(MISTRAL, True) is backend_for(MISTRAL, True)
        assert backend_for(MISTRAL, True) is not backend_for(MISTRAL, False)

    on_loop(check)


def test_closing_forgets_them() -> None:
    async def main() -> None:
        before = backend_for(MISTRAL, False)
        await registry.close_all()
        assert backend_for(MISTRAL, False) is not before
        await registry.close_all()

    asyncio.run(main())


def test_a_live_model_without_an_address_is_the_operators_error() -> None:
    broken = MISTRAL.model_copy(update={"backend": MISTRAL.backend.model_copy(update={"base_url": None})})
    with pytest.raises(ConfigError, match="base_url"):
        backend_for(broken, True)
