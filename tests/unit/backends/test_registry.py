"""Which backend a model runs on."""

import asyncio
import tomllib
from collections.abc import Callable
from importlib import resources

import pytest

from xalen_batch import catalog
from xalen_batch.backends import registry
from xalen_batch.backends.contract import Backend
from xalen_batch.backends.metered import Metered
from xalen_batch.backends.openai import OpenAIBackend
from xalen_batch.backends.registry import backend_for
from xalen_batch.backends.replicas import Replicas
from xalen_batch.backends.rerank_chat import RerankChat
from xalen_batch.backends.responses_chat import ResponsesChat
from xalen_batch.backends.simulated.backend import SimulatedBackend
from xalen_batch.catalog import Model
from xalen_batch.errors import ConfigError

SERVERS = {
    id: {"backend": {"base_url": "http://127.0.0.1:9/v1"}}
    for id in ("mistral-small-3-1", "bge-reranker-v2")
}
BUILT_IN = tomllib.loads(resources.files("xalen_batch").joinpath("catalog.toml").read_text("utf-8"))
MODELS = catalog.parse(BUILT_IN, {"models": SERVERS})
MISTRAL, BGE = MODELS["mistral-small-3-1"], MODELS["bge-reranker-v2"]


def mistral(**backend: object) -> Model:
    """With this backend in the operator's file."""
    return catalog.parse(BUILT_IN, {"models": {"mistral-small-3-1": {"backend": backend}}})[
        "mistral-small-3-1"
    ]


def on_loop(check: Callable[[], None]) -> None:
    async def main() -> None:
        try:
            check()
        finally:
            await registry.close_all()

    asyncio.run(main())


def translated(model: Model, livemode: bool) -> Backend:
    """The model's backend, without the layer that counts its requests."""
    backend = backend_for(model, livemode)
    assert isinstance(backend, Metered)
    return backend.inner


def test_test_mode_is_always_simulated_and_live_mode_is_what_the_catalog_says() -> None:
    def check() -> None:
        simulated = {"kind": "simulated", "has_responses": True}
        for model, livemode, kind in (
            (MISTRAL, False, SimulatedBackend),
            (MISTRAL, True, OpenAIBackend),
            (mistral(**simulated), True, SimulatedBackend),
        ):
            backend = translated(model, livemode)
            assert isinstance(backend, ResponsesChat)
            assert isinstance(backend.inner, kind)
        own = mistral(base_url="http://127.0.0.1:9/v1", has_responses=True)
        assert isinstance(translated(own, True), OpenAIBackend)

    on_loop(check)


def test_rerankers_take_chats_as_well() -> None:
    def check() -> None:
        for livemode, inner in ((False, SimulatedBackend), (True, OpenAIBackend)):
            backend = translated(BGE, livemode)
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


def test_a_model_that_ships_has_no_live_backend() -> None:
    for model in catalog.read(None).values():
        assert model.backend.kind is None
        with pytest.raises(ConfigError, match="base_url"):
            backend_for(model, True)


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        ({}, None),
        ({"max_in_flight": 8}, None),
        ({"base_url": "http://h/v1"}, "openai"),
        ({"base_url": "http://h/v1", "kind": "openai"}, "openai"),
        ({"kind": "simulated"}, "simulated"),
    ],
)
def test_only_the_word_makes_a_live_backend_simulated(
    backend: dict[str, object], kind: str | None
) -> None:
    assert mistral(**backend).backend.kind == kind


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        (
            {"base_url": "http://h/v1", "kind": "simulated"},
            'kind = "simulated" has no server, and base_url names one',
        ),
        ({"kind": "openai"}, 'kind = "openai" needs the base_url'),
        ({"base_url": ""}, "base_url is empty"),
        ({"kind": "Simulated"}, "backend.kind: 'Simulated' is not one of 'openai' or 'simulated'"),
        (
            {"base_ulr": "http://h/v1"},
            "backend.base_ulr: there is no such field. Did you mean base_url?",
        ),
    ],
)
def test_a_backend_that_contradicts_itself_is_an_error_with_its_place(
    backend: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        mistral(**backend)
    assert str(refused.value).startswith(
        "The model catalog is not valid: models.mistral-small-3-1.backend"
    )
    assert words in str(refused.value)


def test_an_entry_that_has_changed_gets_another_backend() -> None:
    def check() -> None:
        before = backend_for(MISTRAL, True)
        priced = MISTRAL.model_copy(update={"name": "Another name"})
        assert backend_for(priced, True) is before
        after = backend_for(mistral(base_url="http://127.0.0.1:8/v1"), True)
        assert after is not before
        registry.give_up(MISTRAL.id, True)
        assert backend_for(mistral(base_url="http://127.0.0.1:8/v1"), True) is not after

    on_loop(check)


def test_several_servers_are_one_backend() -> None:
    def check() -> None:
        urls = ["http://127.0.0.1:8/v1", "http://user:password@127.0.0.1:9/v1"]
        backend = translated(mistral(base_urls=urls), True)
        assert isinstance(backend, ResponsesChat)
        assert isinstance(backend.inner, Replicas)
        names = [replica.name for replica in backend.inner._replicas]
        assert names == ["http://127.0.0.1:8/v1", "http://127.0.0.1:9/v1"]

    on_loop(check)
