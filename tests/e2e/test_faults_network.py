"""A network to the model server that resets, swallows, delays, slices and cuts: lines are tried
again, and each is billed once.
"""

import threading
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.stack import Stack
from tests.fault_proxy import FaultProxy

# Seconds of a fault, long enough for some requests to meet it.
HELD = 5.0


@pytest.fixture(autouse=True)
def _healed(services: Stack) -> Iterator[None]:
    yield
    services.backend.heal()


@pytest.mark.parametrize(
    "fault",
    [
        FaultProxy.reset,
        FaultProxy.refuse,
        FaultProxy.black_hole,
        lambda proxy: proxy.delay(0.5),
        lambda proxy: proxy.slices(1),
        lambda proxy: proxy.cut_after(50),
        lambda proxy: proxy.cut_after(1_500),
    ],
    ids=[
        "reset",
        "refused",
        "black hole",
        "500 ms",
        "slices of a byte",
        "cut in the head",
        "cut between answers",
    ],
)
def test_a_bad_network_to_the_backend(services: Stack, fault: Callable[[FaultProxy], None]) -> None:
    batch = services.submit_and_wait_for_some()
    fault(services.backend)
    threading.Event().wait(HELD)
    services.backend.heal()
    services.is_done(batch)
