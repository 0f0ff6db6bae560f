"""Overlap: what a new run does while earlier runs of its schedule are open.

Pure: no database, no clock.
"""

from enum import StrEnum

from xalen_batch.schedules import definition


class Action(StrEnum):
    START = "start"
    # Wait until the earlier runs have ended.
    WAIT = "wait"
    SKIP = "skip"
    # Cancel the earlier runs, then start.
    CANCEL_PREVIOUS = "cancel_previous"


def decide(
    overlap: definition.Overlap, *, is_running: bool, is_waiting: bool, is_made_up: bool
) -> Action:
    """The action of one new run.

    `is_running`, `is_waiting`: an earlier run is in that state. `is_made_up`: the run is one of
    several for late instants, which wait for each other.
    """
    if overlap == "allow" or not (is_running or is_waiting):
        return Action.START
    if is_made_up or (overlap == "buffer_one" and not is_waiting):
        return Action.WAIT
    return Action.CANCEL_PREVIOUS if overlap == "cancel_previous" else Action.SKIP
