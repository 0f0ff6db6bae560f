"""Execution windows: `22:00-06:00 mon-fri` converted to and from the form of the API."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from xalen_batch.cli import clock
from xalen_batch.cli.batch_options import usage_error
from xalen_batch.cli.output import safe, say

HOURS_HELP = (
    'Start lines only in these hours: "22:00-06:00", or on some days "22:00-06:00 mon-fri".'
)
ZONE_HELP = (
    "Time zone of the execution window, such as Europe/Berlin. If not given: this machine's, or UTC"
    " if its name is unknown."
)
Hours = Annotated[str | None, typer.Option("--execution-window", metavar="HOURS", help=HOURS_HELP)]
Timezone = Annotated[str | None, typer.Option("--timezone", metavar="ZONE", help=ZONE_HELP)]

WEEK = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
# Times that are copied from a page have an en dash.
TIMES = re.compile(r"(\d?\d:\d\d)\s*[-\u2013]\s*(\d?\d:\d\d)(?:[\s,]+(\S.*))?", re.ASCII)
DAYS = re.compile(r"([a-z]{3})(?:[-\u2013]([a-z]{3}))?")


def parse_window(text: str, timezone: str | None) -> dict[str, Any]:
    """Hours with optional days, as an `execution_window` of the API.

    Raises a usage error for any other text.
    """
    times = TIMES.fullmatch(text.strip())
    if not times:
        raise _refused(
            f"{text!r} is not a time, a dash and a time, with days after them or without, such as"
            " `22:00-06:00 mon-fri`."
        )
    window: dict[str, Any] = {"start": times[1].zfill(5), "end": times[2].zfill(5)}
    if times[3]:
        window["days"] = [
            day for part in re.split(r"[\s,]+", times[3].lower()) for day in _days(part)
        ]
    if timezone is not None:
        window["timezone"] = timezone
    _check(window)
    return window


def asked_for(hours: str | None, timezone: str | None, completion: str) -> dict[str, Any] | None:
    """The execution window of a batch's options, or None.

    A usage error if it does not open within the completion window, by this machine's clock. Says on
    stderr which zone is assumed if none was given.
    """
    if hours is None:
        if timezone is not None:
            raise typer.BadParameter(
                "it is the clock of an execution window: give --execution-window too.",
                param_hint="--timezone",
            )
        return None
    window = parse_window(hours, clock.zone_or_machines(timezone))
    _refuse_if_never_open(window, completion)
    clock.say_zone(timezone)
    return window


def _refuse_if_never_open(window: dict[str, Any], completion: str) -> None:
    from xalen_batch import windows

    with usage_error("--execution-window / --window"):
        windows.refuse_if_never_open(
            windows.ExecutionWindow(**window), datetime.now(UTC), windows.completion(completion)
        )


def described(window: dict[str, Any]) -> str:
    """The API object as `22:00–06:00 Europe/Berlin, mon–fri`."""
    from xalen_batch.windows import ExecutionWindow

    # Not validated: the zones of this machine may differ from the server's.
    return safe(
        ExecutionWindow.model_construct(
            **{name: window[name] for name in ExecutionWindow.model_fields}
        ).describe()
    )


def shown(window: dict[str, Any]) -> str:
    """A batch's window with its state, and the time at which that changes."""
    change = "closes_at" if window["state"] == "open" else "opens_at"
    when = (
        ""
        if window[change] is None
        else f", {change.removesuffix('_at')} {_moment(window, window[change])}"
    )
    return f"{described(window)}: {window['state']}{when}"


def waits_until(batch: dict[str, Any]) -> int | None:
    """The Unix seconds at which the window opens that all unstarted lines wait for.

    None if the batch does not wait for it.
    """
    window = batch.get("execution_window")
    return (
        window["opens_at"]
        if window and batch["status"] == "in_progress" and window["state"] == "closed"
        else None
    )


def say_waiting(batch: dict[str, Any]) -> None:
    """Say on stderr that a batch waits for its window."""
    window = batch["execution_window"]
    text = f"{batch['id']} waits for its execution window, {described(window)}. "
    if window["opens_at"] < batch["expires_at"]:
        say(
            f"{text}It opens {_moment(window, window['opens_at'])},"
            f" {clock.until(window['opens_at'])}."
        )
    else:
        say(
            f"{text}It does not open again before the batch expires,"
            f" {clock.utc(batch['expires_at'])}.",
            style="yellow",
        )


def _moment(window: dict[str, Any], seconds: int) -> str:
    """Unix seconds on the clock of the window's zone, and in UTC if that differs."""
    there, utc = clock.at(seconds, window["timezone"]), clock.utc(seconds)
    return utc if there.endswith("+00:00") or there == utc else f"{there} ({utc})"


def _days(part: str) -> Iterator[str]:
    match = DAYS.fullmatch(part)
    first, last = (match[1], match[2] or match[1]) if match else ("", "")
    if first not in WEEK or last not in WEEK:
        raise _refused(
            f"{part!r} is no day: write {', '.join(WEEK)}, or from one to another, such as"
            " `mon-fri`."
        )
    number = (WEEK.index(last) - WEEK.index(first)) % len(WEEK) + 1
    for step in range(number):
        yield WEEK[(WEEK.index(first) + step) % len(WEEK)]


def _check(window: dict[str, Any]) -> None:
    """Check a window as the server will, before a file is uploaded."""
    from pydantic import ValidationError

    from xalen_batch.windows import ExecutionWindow

    try:
        ExecutionWindow.model_validate(window)
    except ValidationError as found:
        error = found.errors()[0]
        problem = error["msg"].removeprefix("Value error, ")
        where = error["loc"][0] if error["loc"] else None
        subject = repr(window[where]) if where in ("start", "end", "timezone") else "it"
        raise _refused(
            f"{subject} {problem}.", "--timezone" if where == "timezone" else "--execution-window"
        ) from None


def _refused(message: str, option: str = "--execution-window") -> typer.BadParameter:
    return typer.BadParameter(message, param_hint=option)
