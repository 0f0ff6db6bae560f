"""IANA time zones: their names, and the moments at which a zone's clock shows a wall time."""

from bisect import bisect_left
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

from xalen_batch.errors import QUOTED_CHARS, InvalidRequest

LONGEST_ZONE = 64
EXAMPLE_ZONES = ("Europe/Berlin", "America/New_York", "UTC")
# Names in a zone database that are no IANA zones: the machine's own zone, and placeholders.
NO_ZONES = {"localtime", "posixrules", "Factory"}


def zone(name: str) -> ZoneInfo:
    """The time zone of an IANA name. InvalidRequest for anything else."""
    if name not in _zone_names():
        raise InvalidRequest(
            f"timezone: {name[:QUOTED_CHARS]!r} is no IANA time zone. Write one such as"
            f" {similar_zones(name)}.",
            param="timezone",
        )
    return ZoneInfo(name)


def similar_zones(name: str) -> str:
    """Names of zones that resemble a wrong one, or else examples, for a message."""
    by_alias = {
        alias.lower(): known
        for known in sorted(_zone_names())
        for alias in (known, known.split("/")[-1])
    }
    exact = by_alias.get(_alias(name))
    if exact is not None:
        return f"`{exact}`"
    close = get_close_matches(_alias(name[:LONGEST_ZONE]), by_alias, n=3, cutoff=0.75)
    # Several aliases may be of one zone.
    found = list(dict.fromkeys(by_alias[alias] for alias in close)) or list(EXAMPLE_ZONES)
    return ", ".join(f"`{known}`" for known in found)


def _alias(name: str) -> str:
    return name.strip().replace(" ", "_").lower()


def reached(wall: datetime, zone: ZoneInfo) -> datetime:
    """The first moment, in UTC, at which a zone's clock shows a (naive) wall time.

    For a wall time that a clock change skips: the end of the gap.
    """
    moments = shown(wall, zone)
    if moments:
        return moments[0]
    # For a wall time in a gap, fold=1 uses the offset after the change, and gives a moment before
    # the change (PEP 495).
    before, after = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (1, 0))
    changed = after.astimezone(zone).utcoffset()

    def is_after(second: int) -> bool:
        return (before + timedelta(seconds=second)).astimezone(zone).utcoffset() == changed

    return before + timedelta(
        seconds=bisect_left(range(int((after - before).total_seconds())), True, key=is_after)
    )


def shown(wall: datetime, zone: ZoneInfo) -> list[datetime]:
    """The moments at which a zone's clock shows a wall time, ascending.

    Two if a clock change repeats the wall time, none if one skips it.
    """
    readings = {wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)}
    return sorted(
        moment
        for moment in readings
        if moment.astimezone(zone).replace(tzinfo=None, fold=0) == wall
    )


def met(wall: datetime, zone: ZoneInfo) -> list[datetime]:
    """The one moment for a wall time, in a list.

    Empty for a day that the zone's calendar skips, such as 30 December 2011 in Pacific/Apia.
    """
    moment = reached(wall, zone)
    before, after = (
        (moment - pause).astimezone(zone).date() for pause in (timedelta(seconds=1), timedelta())
    )
    return [] if before < wall.date() < after else [moment]


@cache
def _zone_names() -> frozenset[str]:
    return frozenset(available_timezones() - NO_ZONES)
