"""When a slot waits, and for how long: it sleeps on its queue, and never spins."""

import queue
from decimal import Decimal

import pytest

from xalen_batch import ids
from xalen_batch.backends.contract import Answered, Request, Usage
from xalen_batch.backends.lane import Lane
from xalen_batch.backends.simulated.backend import SimulatedBackend
from xalen_batch.billing.charges import Tariff
from xalen_batch.catalog import CHAT, models
from xalen_batch.config import settings
from xalen_batch.pipeline.claim import Claim, Line
from xalen_batch.pipeline.execute import HEARTBEAT, Run, Slot

MODEL = "mistral-small-3-1"
LINE = Line(1, "line-1", Request(CHAT, b"{}", "req_1"))
ANSWER = Answered(200, b"{}", Usage(1, 1))


class Outcomes:
    """Gives what it was made with, then nothing any more; remembers how long each look was ready to wait."""

    def __init__(self, *items: object) -> None:
        self.items = list(items)
        self.waits: list[float] = []

    def get(self, timeout: float) -> object:
        self.waits.append(timeout)
        if not self.items:
            raise queue.Empty
        return self.items.pop(0)


def slot(outcomes: Outcomes) -> Slot:
    claim = Claim((ids.new(), 1), 1, (MODEL, False), Tariff({"input": "0.02", "output": "0.04"}, Decimal("0.5")), False, (LINE,))
    run = Run(claim, Lane(SimulatedBackend(models()[MODEL]), 1))
    run.outcomes = outcomes  # type: ignore[assignment]
    return Slot(run, None, stop=lambda: None, seconds_left=lambda: None)  # type: ignore[arg-type]


def test_a_slot_with_nothing_to_record_sleeps_until_its_next_heartbeat() -> None:
    outcomes = Outcomes()
    assert slot(outcomes)._receive()
    assert outcomes.waits == [pytest.approx(HEARTBEAT, abs=0.1)]


def test_an_outcome_waits_no_longer_than_the_flush_interval() -> None:
    outcomes = Outcomes((LINE, ANSWER))
    assert slot(outcomes)._receive()
    assert outcomes.waits[1:] == [pytest.approx(settings().flush_interval, abs=0.1)]


def test_a_full_flush_waits_for_nothing() -> None:
    outcomes = Outcomes(*[(LINE, ANSWER)] * (settings().flush_lines + 1))
    assert slot(outcomes)._receive()
    assert len(outcomes.waits) == settings().flush_lines


def test_the_end_of_the_run_ends_the_waiting() -> None:
    outcomes = Outcomes((LINE, ANSWER), None)
    assert not slot(outcomes)._receive()
    assert len(outcomes.waits) == 2
