"""Renders times for people, on a schedule's clock or in UTC, and finds this machine's time zone."""

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from xalen_batch.cli.output import say

LOCALTIME = Path("/etc/localtime")
FOLDER_OF_ZONES = "zoneinfo/"
# Subfolders with copies of all zones, with and without leap seconds.
EDITIONS = ("posix/", "right/")
LENGTHS = {"m": "minutes", "h": "hours", "d": "days"}
UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def machine_zone() -> str | None:
    """The IANA name of this machine's time zone; None if it is unknown."""
    name = os.environ.get("TZ")
    name = os.path.realpath(LOCALTIME) if name is None else name.removeprefix(":")
    name = name.rpartition(FOLDER_OF_ZONES)[2]
    for edition in EDITIONS:
        name = name.removeprefix(edition)
    return name if _is_zone(name) else None


def zone_or_machines(timezone: str | None) -> str:
    """The given zone, or that of this machine, or UTC."""
    return timezone or machine_zone() or "UTC"


def say_zone(timezone: str | None) -> None:
    """Say on stderr which zone is assumed if none was given.

    Call it after the other options are checked.
    """
    if timezone is not None:
        return
    if found := machine_zone():
        say(f"Time zone: {found}, this machine's. --timezone names another.")
    else:
        say(
            "Time zone: UTC, since this machine's zone is not known by name. --timezone names"
            " another.",
            style="yellow",
        )


def _is_zone(name: str) -> bool:
    from xalen_batch.errors import InvalidRequest
    from xalen_batch.timezones import zone

    try:
        zone(name)
    except InvalidRequest:
        return False
    return True


def local(iso: str | None) -> str:
    """An ISO 8601 time with an offset as `Wed 2026-11-25 02:30 +01:00`; a dash for None.

    It has seconds if they are not 0.
    """
    if iso is None:
        return "-"
    time = datetime.fromisoformat(iso)
    return f"{time:%a} {_minute(time)} {time.isoformat()[-6:]}"


def utc(seconds: float | None) -> str:
    """Unix seconds as `2026-11-25 01:30 UTC`; a dash for None."""
    return "-" if seconds is None else f"{_minute(datetime.fromtimestamp(seconds, UTC))} UTC"


def beside(seconds: float, iso: str, timezone: str) -> str:
    """A moment on a zone's clock, for display next to another moment.

    It has a date and an offset only if they differ from those of the other. In UTC if this machine
    does not know the zone.
    """
    other, zone = datetime.fromisoformat(iso), _zone(timezone)
    if zone is None:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    time = datetime.fromtimestamp(seconds, zone)
    date = "" if time.date() == other.date() else f"{time:%Y-%m-%d} "
    offset = "" if time.utcoffset() == other.utcoffset() else f" {time.isoformat()[-6:]}"
    return f"{date}{time:%H:%M:%S}{offset}"


def at(seconds: float | None, timezone: str) -> str:
    """Unix seconds on a zone's clock, as `local`; in UTC if this machine does not know the zone."""
    zone = _zone(timezone)
    return (
        utc(seconds)
        if seconds is None or zone is None
        else local(datetime.fromtimestamp(seconds, zone).isoformat())
    )


def _zone(timezone: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def _minute(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S}" if time.second else f"{time:%Y-%m-%d %H:%M}"


def length(seconds: float) -> str:
    """Seconds in their two largest units: `4.2 s`, `12 min 5 s`, `6 h 42 min`, `3 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    left, parts = int(seconds), list[str]()
    for size, unit in UNITS:
        number, left = divmod(left, size)
        if number or parts:
            parts.append(f"{number} {unit}" if number else "")
    return " ".join(filter(None, parts[:2]))


def until(seconds: float) -> str:
    """The time from now to Unix seconds: `in 3 h 12 min`, or `now`."""
    left = timedelta(seconds=seconds) - (datetime.now(UTC) - datetime.fromtimestamp(0, UTC))
    return "now" if left < timedelta(seconds=1) else f"in {length(int(left.total_seconds()))}"


def duration(text: str, option: str) -> timedelta:
    """Seconds as an option has them: `30m`, `24h`, `7d`, or `0`."""
    match = re.fullmatch(r"([0-9]{1,5})([mhd])", text, re.ASCII)
    if match is None and text != "0":
        raise typer.BadParameter(
            f"{text!r} is no length of time. Write minutes, hours or days: 30m, 24h, 7d.",
            param_hint=option,
        )
    return timedelta(**{LENGTHS[match[2]]: int(match[1])}) if match else timedelta()


def moment(text: str, option: str) -> str:
    """An option's time in the API's form, ISO 8601; a date is its midnight.

    A time without an offset is on the schedule's clock.
    """
    try:
        return datetime.fromisoformat(text).isoformat()
    except ValueError:
        remedy = (
            "Write it as 2026-11-01, 2026-11-01T18:00 or, with an offset,"
            " 2026-11-01T18:00:00+01:00."
        )
        raise typer.BadParameter(f"{text!r} is not a time. {remedy}", param_hint=option) from None
