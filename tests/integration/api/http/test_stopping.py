"""A signal to stop counts from the first moment of the API's process on."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from xalen_batch.api import app

PATIENCE = 15.0


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Keep the signal handlers of the test process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_api_that_is_told_to_stop_while_it_starts_stops(
    database: str, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    for module, name in (
        (app.log, "configure"),
        (app.catalog, "warn_of_unknown_settings"),
        (app.memory, "settle"),
        (app.pool, "prepare"),
        (app.sys, "setswitchinterval"),
    ):
        monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(app, "_mark_store", lambda: signal.raise_signal(number))
    went_on = threading.Event()

    def stop_anyway() -> None:
        went_on.set()
        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(PATIENCE, stop_anyway)
    timer.start()
    try:
        app.serve("127.0.0.1", 0)
    finally:
        timer.cancel()
    assert not went_on.is_set()
