"""A hostile model server in a thread of its own, and an engine with this server as its backend."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration import engines
from tests.integration.backends import hostile
from tests.integration.backends.hostile import Hostile, MiB
from tests.waiting import PATIENCE
from xalen_batch.worker.engine import Engine

CATALOG = (
    '[models.mistral-small-3-1.backend]\nkind = "openai"\nbase_url = "{}"\nmax_in_flight = 8\n'
)


@pytest.fixture
def server() -> Iterator[Hostile]:
    """Run the server in a thread of its own, so that the test's thread is only the worker."""
    loop, ready, over = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    found: list[Hostile] = []

    async def main() -> None:
        async with hostile.hostile() as made:
            found.append(made)
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    assert ready.wait(PATIENCE)
    yield found[0]
    loop.call_soon_threadsafe(over.set)
    thread.join(PATIENCE)


@pytest.fixture
def engine(server: Hostile, configure: Callable[..., None], tmp_path: Path) -> Iterator[Engine]:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(CATALOG.format(server.base_url), "utf-8")
    configure(
        catalog=catalog,
        flush_interval=0.05,
        lease=30,
        request_timeout=20,
        answer_max_bytes=MiB,
        retry_base=0.01,
        retry_cap=0.05,
        circuit_pause=0.1,
        max_attempts=2,
    )
    with engines.running() as engine:
        yield engine
