"""What a schedule does with instants that came due late, and with a run that meets the one before.

Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from xalen_batch.schedules.definition import Definition, Overlap

# The newest instant is on time if it fires within this, whatever held it up.
ON_TIME = timedelta(minutes=5)


class Miss(StrEnum):
    """Why an instant was never run."""

    TOO_OLD = "catch_up_window"
    LATER_ONE = "misfire_latest"
    TOO_MANY = "misfire_limit"
    NEVER_LATE = "misfire_none"
    PAUSED = "paused"


@dataclass
class Due:
    """Instants that have come, oldest first: those to run, and those that are missed."""

    run: list[datetime] = field(default_factory=list)
    missed: list[tuple[datetime, Miss]] = field(default_factory=list)


def is_too_old(age: timedelta, definition: Definition) -> bool:
    """Whether an instant so long past is beyond what is made up for."""
    return age > max(definition.catch_up, ON_TIME)


def sort_out(ages: Sequence[tuple[datetime, timedelta]], definition: Definition) -> Due:
    """Decide on (instant, how long ago it should have fired), oldest first, by the schedule's
    `misfire`.
    """
    due = Due()
    late = []
    for instant, age in ages:
        if age <= ON_TIME and instant == ages[-1][0]:
            due.run.append(instant)
        elif is_too_old(age, definition):
            due.missed.append((instant, Miss.TOO_OLD))
        else:
            late.append(instant)
    match definition.misfire:
        case "all":
            kept, reason = late[-definition.misfire_limit :], Miss.TOO_MANY
        case "latest":
            kept, reason = [] if due.run else late[-1:], Miss.LATER_ONE
        case "none":
            kept, reason = [], Miss.NEVER_LATE
    due.missed += [(instant, reason) for instant in late[: len(late) - len(kept)]]
    due.run = kept + due.run
    return due


class Meeting(StrEnum):
    """What a new run does where earlier ones are still open."""

    START = "start"
    WAIT = "wait"
    SKIP = "skip"
    CANCEL_PREVIOUS = "cancel_previous"


def meet(overlap: Overlap, *, is_running: bool, is_waiting: bool, is_made_up: bool) -> Meeting:
    """Decide for one run.

    `is_made_up`: one of several that are run for the past, which wait for each other.
    """
    if overlap == "allow" or not (is_running or is_waiting):
        return Meeting.START
    if is_made_up or (overlap == "buffer_one" and not is_waiting):
        return Meeting.WAIT
    return Meeting.CANCEL_PREVIOUS if overlap == "cancel_previous" else Meeting.SKIP
