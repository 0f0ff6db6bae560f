"""Misfire: which instants of a schedule have come, and which of the late ones still run.

Pure: no database, no clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import takewhile

from xalen_batch.schedules.definition import Definition

# An instant is late once it is older than this. Short delays, such as a restart, make none late.
ON_TIME = timedelta(minutes=5)
# Instants recorded as missed in one transaction.
MISSED_AT_ONCE = 1_000
MICROSECOND = timedelta(microseconds=1)


class Miss(StrEnum):
    """Why an instant never runs."""

    TOO_OLD = "catch_up_window"
    LATER_ONE = "misfire_latest"
    TOO_MANY = "misfire_limit"
    NEVER_LATE = "misfire_none"
    PAUSED = "paused"


MESSAGES = {
    Miss.TOO_OLD: (
        "Nothing was there to fire it, and it was older than the catch-up window when something"
        " was."
    ),
    Miss.LATER_ONE: (
        "Nothing was there to fire it on time; with `misfire: latest` a later instant stands"
        " for it."
    ),
    Miss.TOO_MANY: (
        "Nothing was there to fire it on time, and more instants were late than `misfire_limit`."
    ),
    Miss.NEVER_LATE: (
        "Nothing was there to fire it on time, and with `misfire: none` it is not made up for."
    ),
    Miss.PAUSED: "Failed runs paused the schedule before it fired.",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Instants that have come, oldest first: those that run, and those that are missed."""

    run: list[datetime]
    missed: list[tuple[datetime, Miss]]


def come(definition: Definition, first: datetime, until: datetime) -> list[datetime]:
    """The instants in [first, until], without jitter, oldest first.

    After a long absence: at most MISSED_AT_ONCE instants, if all of them are too old to run.
    """
    instants: list[datetime] = []
    later = definition.fires(first - MICROSECOND)
    for instant in takewhile(lambda instant: instant <= until, later):
        if len(instants) >= MISSED_AT_ONCE and is_too_old(until - instants[-1], definition):
            break
        instants.append(instant)
    return instants


def plan(instants: Sequence[datetime], until: datetime, definition: Definition) -> Plan:
    """Sort instants, oldest first, into those that run and those that are missed.

    `until` is now without the jitter: an instant is as late as it lies before `until`. The newest
    instant runs if it is on time; the schedule's `misfire` decides on the late ones.
    """
    on_time: list[datetime] = []
    late: list[datetime] = []
    missed: list[tuple[datetime, Miss]] = []
    for instant in instants:
        age = until - instant
        if age <= ON_TIME and instant == instants[-1]:
            on_time.append(instant)
        elif is_too_old(age, definition):
            missed.append((instant, Miss.TOO_OLD))
        else:
            late.append(instant)
    match definition.misfire:
        case "all":
            made_up, reason = late[-definition.misfire_limit :], Miss.TOO_MANY
        case "latest" if not on_time:
            made_up, reason = late[-1:], Miss.LATER_ONE
        case "latest":
            made_up, reason = [], Miss.LATER_ONE
        case "none":
            made_up, reason = [], Miss.NEVER_LATE
    missed += [(instant, reason) for instant in late[: len(late) - len(made_up)]]
    return Plan(made_up + on_time, missed)


def is_too_old(age: timedelta, definition: Definition) -> bool:
    """Whether an age is beyond the catch-up window. No window is shorter than ON_TIME."""
    return age > max(definition.catch_up, ON_TIME)
