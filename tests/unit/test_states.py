"""Every pair of states: only the allowed moves are possible."""

import itertools

import pytest

from xalen_batch.states import BATCH_MOVES, TERMINAL, BatchStatus

# Read off the published batch lifecycle, independently of the table in the code.
ALLOWED = {
    ("validating", "failed"),
    ("validating", "in_progress"),
    ("validating", "cancelling"),
    ("in_progress", "finalizing"),
    ("in_progress", "cancelling"),
    ("finalizing", "completed"),
    ("finalizing", "expired"),
    ("cancelling", "cancelled"),
}


@pytest.mark.parametrize(("source", "target"), list(itertools.product(BatchStatus, BatchStatus)))
def test_a_batch_moves_as_published_and_no_other_way(
    source: BatchStatus, target: BatchStatus
) -> None:
    assert (target in BATCH_MOVES[source]) == ((source.value, target.value) in ALLOWED)


def test_terminal_states_are_the_four_that_clients_wait_for() -> None:
    assert {status.value for status in TERMINAL} == {"failed", "completed", "expired", "cancelled"}


def test_every_batch_state_is_reached_from_validating() -> None:
    reached, frontier = {BatchStatus.VALIDATING}, [BatchStatus.VALIDATING]
    while frontier:
        new = BATCH_MOVES[frontier.pop()] - reached
        reached |= new
        frontier += new
    assert reached == set(BatchStatus)
