"""A station follows the catalog: a changed entry gets a new backend, and the old one is closed."""

import asyncio

from xalen_batch import catalog
from xalen_batch.api.live.stations import Stations
from xalen_batch.backends.contract import Request
from xalen_batch.catalog import Model
from xalen_batch.endpoints.names import CHAT

MISTRAL = catalog.read(None)["mistral-small-3-1"]
# Live keys on a simulated model need neither a server nor Redis.
BEFORE = MISTRAL.model_copy(
    update={"backend": MISTRAL.backend.model_copy(update={"kind": "simulated"})}
)
REQUEST = Request(CHAT, b"{}", "r")


def changed(model: Model) -> Model:
    return model.model_copy(update={"latency_ms": model.latency_ms + 1})


def test_a_changed_entry_is_closed_after_its_last_call() -> None:
    closed: list[str] = []

    async def scenario() -> None:
        stations = Stations()
        old = stations.of(BEFORE, True)
        assert stations.of(BEFORE, True) is old

        async def close() -> None:
            closed.append("old")

        old.backend.close = close  # type: ignore[method-assign]
        async with old.use(REQUEST):
            after = changed(BEFORE)
            new = stations.of(after, True)
            assert new is not old
            assert new.backend is not old.backend
            stations.of(changed(after), True)
            await asyncio.sleep(0)
            assert closed == []
        stations.of(changed(changed(changed(BEFORE))), True)
        await asyncio.gather(*stations._closing)
        assert closed == ["old"]
        await stations.close()

    asyncio.run(scenario())
    assert closed == ["old"]
