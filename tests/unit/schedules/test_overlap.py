"""Overlap: the action of a new run while earlier runs are open."""

from typing import Any

import pytest

from xalen_batch.schedules.overlap import Action, decide


@pytest.mark.parametrize(
    ("overlap", "is_running", "is_waiting", "expected"),
    [
        ("skip", True, False, Action.SKIP),
        ("skip", False, True, Action.SKIP),
        ("buffer_one", True, False, Action.WAIT),
        ("buffer_one", True, True, Action.SKIP),
        ("allow", True, True, Action.START),
        ("cancel_previous", True, False, Action.CANCEL_PREVIOUS),
        ("skip", False, False, Action.START),
        ("buffer_one", False, False, Action.START),
        ("cancel_previous", False, False, Action.START),
    ],
)
def test_a_run_that_meets_the_one_before(
    overlap: Any, is_running: bool, is_waiting: bool, expected: Action
) -> None:
    assert (
        decide(overlap, is_running=is_running, is_waiting=is_waiting, is_made_up=False) is expected
    )


def test_runs_made_up_for_wait_for_each_other_unless_they_may_overlap() -> None:
    assert decide("skip", is_running=True, is_waiting=True, is_made_up=True) is Action.WAIT
    assert decide("allow", is_running=True, is_waiting=True, is_made_up=True) is Action.START
