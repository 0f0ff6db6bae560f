"""Completion windows of batches, catch-up windows of schedules, and execution windows."""

import re
from collections.abc import Iterator
from datetime import datetime, time, timedelta
from itertools import groupby
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from xalen_batch import timezones
from xalen_batch.errors import QUOTED_CHARS, InvalidRequest

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEK: tuple[Day, ...] = get_args(Day)
TIME = re.compile("([01][0-9]|2[0-3]):[0-5][0-9]")
ONE_DAY = timedelta(days=1)
ONE_HOUR = timedelta(hours=1)
UNITS = {"m": timedelta(minutes=1), "h": ONE_HOUR, "d": ONE_DAY}
SHORTEST_COMPLETION, LONGEST_COMPLETION = ONE_HOUR, 7 * ONE_DAY
LONGEST_CATCH_UP = 30 * ONE_DAY


def completion(text: str) -> timedelta:
    """The length of a completion window, `1h` to `7d`. Raises InvalidRequest for other texts."""
    match = re.fullmatch(r"([1-9][0-9]{0,2})([hd])", text, re.ASCII)
    length = int(match[1]) * UNITS[match[2]] if match else timedelta()
    if not SHORTEST_COMPLETION <= length <= LONGEST_COMPLETION:
        raise InvalidRequest(
            f"completion_window: {text[:QUOTED_CHARS]!r} is not a completion window. Send `24h`,"
            " or whole hours or days from `1h` to `7d`.",
            param="completion_window",
        )
    return length


def catch_up(text: str) -> timedelta:
    """The length of a catch-up window, `1m` to `30d`. Raises InvalidRequest for other texts."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})([mhd])", text, re.ASCII)
    length = int(match[1]) * UNITS[match[2]] if match else timedelta()
    if not timedelta() < length <= LONGEST_CATCH_UP:
        raise InvalidRequest(
            f"catch_up_window: {text[:QUOTED_CHARS]!r} is not a catch-up window. Send minutes,"
            " hours or days, such as `30m`, `12h` or `7d`; the most is `30d`.",
            param="catch_up_window",
        )
    return length


def _time(text: str) -> str:
    if not TIME.fullmatch(text):
        hint = " (write the end of a day as `00:00`)" if text == "24:00" else ""
        raise ValueError(f"should be a time of day from `00:00` to `23:59`, two digits each{hint}")
    return text


def _week_order(days: list[Day]) -> list[Day]:
    if not days:
        raise ValueError("should name at least one day, such as `mon`")
    return [day for day in WEEK if day in days]


def _zone(name: str) -> str:
    try:
        timezones.zone(name)
    except InvalidRequest as error:
        raise ValueError(
            f"should be an IANA time zone such as {timezones.similar_zones(name)}"
        ) from error
    return name


TimeOfDay = Annotated[str, AfterValidator(_time)]


class ExecutionWindow(BaseModel):
    """The hours in which lines may start, on the wall clock of a time zone.

    A window that wraps midnight belongs to the day on which it opens. Clock changes: a time that is
    skipped means the end of the gap, and a time that is repeated means the first occurrence. If
    the end is then not after the start, the window does not open on that day.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: TimeOfDay = Field(description="From this time on.", examples=["22:00"])
    end: TimeOfDay = Field(
        description="Until just before this time; on the next day if it is earlier than `start`.",
        examples=["06:00"],
    )
    days: Annotated[list[Day], AfterValidator(_week_order)] = Field(
        list(WEEK), description="Those on which it opens."
    )
    timezone: Annotated[str, AfterValidator(_zone)] = Field(
        "UTC", description="IANA name of the zone whose clock counts."
    )

    @model_validator(mode="after")
    def _lasts(self) -> Self:
        if self.start == self.end:
            raise ValueError(
                f"should end at another time than it starts, `{self.start}`; send none to run at"
                " any time"
            )
        return self

    def interval(self, at: datetime) -> tuple[datetime, datetime]:
        """The interval (opens, closes), in UTC, that contains an aware instant, else the next one.

        An interval contains `at` if opens <= at < closes.
        """
        return next(self.intervals(at))

    def intervals(self, at: datetime) -> Iterator[tuple[datetime, datetime]]:
        """The interval of `interval(at)` and all later ones, ascending and disjoint, without end.

        An interval may open at the instant at which the one before closes.
        """
        zone = timezones.zone(self.timezone)
        start, end = time.fromisoformat(self.start), time.fromisoformat(self.end)
        day = at.astimezone(zone).date() - ONE_DAY
        while True:
            if WEEK[day.weekday()] in self.days:
                opens = timezones.reached(datetime.combine(day, start), zone)
                closes = timezones.reached(
                    datetime.combine(day if start < end else day + ONE_DAY, end), zone
                )
                if opens < closes and at < closes:
                    yield opens, closes
            day += ONE_DAY

    def describe(self) -> str:
        """`22:00–06:00 Europe/Berlin, mon–fri`; without the days if it opens on all seven."""
        parts = [f"{self.start}–{self.end} {self.timezone}"]
        if len(self.days) == len(WEEK):
            return parts[0]
        # Consecutive days have the same difference between their index in the week and here.
        for _, run in groupby(enumerate(self.days), lambda item: WEEK.index(item[1]) - item[0]):
            days = [day for _, day in run]
            parts.append(days[0] if len(days) == 1 else f"{days[0]}–{days[-1]}")
        return ", ".join(parts)


def refuse_if_never_open(
    window: ExecutionWindow,
    start: datetime,
    completion: timedelta,
    *,
    param: str = "execution_window",
) -> None:
    """Raise InvalidRequest if a window does not open within the completion window.

    `start`: the aware beginning of the completion window. The message shows the arithmetic.
    """
    opens, _ = window.interval(start)
    wait = opens - start
    if wait < completion:
        return
    zone = timezones.zone(window.timezone)

    def local(moment: datetime) -> str:
        there = moment.astimezone(zone)
        return f"{WEEK[there.weekday()]} {there.isoformat(' ', 'minutes')}"

    raise InvalidRequest(
        f"{param}: {window.describe()} is not open before the batch expires. From its start at"
        f" {local(start)}, a completion window of {_length(completion)} lasts until"
        f" {local(start + completion)}, but the execution window next opens at {local(opens)},"
        f" {_length(wait)} after the start. Send a completion window of at least"
        f" {wait // ONE_HOUR + 1}h, or hours that come sooner.",
        param=param,
    )


def _length(span: timedelta) -> str:
    hours, rest = divmod(span, ONE_HOUR)
    minutes = rest // timedelta(minutes=1)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
