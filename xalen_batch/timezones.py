"""IANA time zones: their names, and when a wall clock in one shows a time."""

from bisect import bisect_left
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

from xalen_batch.errors import QUOTED_CHARS, InvalidRequest

LONGEST_ZONE = 64
# What a folder of zone files may hold besides zones: this machine's own, and placeholders.
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
    """Names of zones that are close to a wrong one, or else examples, for a message."""
    by_alias = {
        alias.lower(): known
        for known in sorted(_zone_names())
        for alias in (known, known.split("/")[-1])
    }
    if exact := by_alias.get(name.strip().replace(" ", "_").lower()):
        return f"`{exact}`"
    close = get_close_matches(
        name[:LONGEST_ZONE].strip().replace(" ", "_").lower(), by_alias, n=3, cutoff=0.75
    )
    found = dict.fromkeys(by_alias[alias] for alias in close) or [
        "Europe/Berlin",
        "America/New_York",
        "UTC",
    ]
    return ", ".join(f"`{known}`" for known in found)


def reached(wall: datetime, zone: ZoneInfo) -> datetime:
    """When, in UTC, a zone's clock shows a (naive) wall time for the first time, or else skips past
    it: the end of the gap.
    """
    if moments := shown(wall, zone):
        return moments[0]
    # Of a wall time in a gap, fold=1 is the reading of the clock as it is afterwards, and lies
    # before the change (PEP 495).
    before, after = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (1, 0))
    changed = after.astimezone(zone).utcoffset()

    def is_after(second: int) -> bool:
        return (before + timedelta(seconds=second)).astimezone(zone).utcoffset() == changed

    return before + timedelta(
        seconds=bisect_left(range(int((after - before).total_seconds())), True, key=is_after)
    )


def shown(wall: datetime, zone: ZoneInfo) -> list[datetime]:
    """The moments at which a clock shows a wall time: one; two where it is repeated; none where it
    is skipped.
    """
    readings = {wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)}
    return sorted(
        moment
        for moment in readings
        if moment.astimezone(zone).replace(tzinfo=None, fold=0) == wall
    )


def met(wall: datetime, zone: ZoneInfo) -> list[datetime]:
    """The one moment for a wall time; none on a day that the zone's calendar leaves out, as
    Pacific/Apia's 30 December 2011.
    """
    moment = reached(wall, zone)
    before, after = (
        (moment - pause).astimezone(zone).date() for pause in (timedelta(seconds=1), timedelta())
    )
    return [] if before < wall.date() < after else [moment]


@cache
def _zone_names() -> frozenset[str]:
    return frozenset(available_timezones() - NO_ZONES)
