"""Strings of the formats that JSON Schema names."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from random import Random

# The first day of dates.
START = datetime(2025, 1, 1, tzinfo=UTC)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
LONGEST_LABEL = 60


def candidates(name: str, dice: Random, least: int) -> Iterator[str]:
    """Strings of a format, the usual first, then short ones, then one of `least` characters.

    None for a format that is unknown: validators ignore it.
    """
    make = _MAKERS.get(name)
    if make is None:
        return
    yield make(dice)
    yield from _SHORT.get(name, ())
    yield from _long(name, dice, least)


def is_known(name: str) -> bool:
    return name in _MAKERS


def _word(dice: Random, size: int = 6) -> str:
    return "".join(dice.choices(LETTERS, k=size))


def _moment(dice: Random) -> datetime:
    return START + timedelta(seconds=dice.randrange(365 * 24 * 3600))


def _uuid(dice: Random) -> str:
    digits = f"{dice.getrandbits(128):032x}"
    variant = "89ab"[dice.randrange(4)]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def _long(name: str, dice: Random, least: int) -> Iterator[str]:
    """A string that is padded to a length, in the formats that allow it."""
    start, end = _PADDED.get(name, ("", ""))
    size = least - len(start) - len(end)
    if name in _PADDED and size > 0:
        yield start + _word(dice, size) + end
    elif name in ("hostname", "idn-hostname", "host-name", "email", "idn-email") and size > 0:
        labels = [_word(dice, min(LONGEST_LABEL, size - at)) for at in range(0, size, 61)]
        prefix = "a@" if "email" in name else ""
        yield f"{prefix}{'.'.join(labels)}.example.com"


_MAKERS: dict[str, Callable[[Random], str]] = {
    "date-time": lambda dice: _moment(dice).strftime("%Y-%m-%dT%H:%M:%SZ"),
    "date": lambda dice: _moment(dice).strftime("%Y-%m-%d"),
    "time": lambda dice: _moment(dice).strftime("%H:%M:%SZ"),
    "duration": lambda dice: f"P{dice.randrange(1, 10)}DT{dice.randrange(1, 24)}H",
    "email": lambda dice: f"{_word(dice)}@example.com",
    "idn-email": lambda dice: f"{_word(dice)}@example.com",
    "hostname": lambda dice: f"{_word(dice)}.example.com",
    "host-name": lambda dice: f"{_word(dice)}.example.com",
    "idn-hostname": lambda dice: f"{_word(dice)}.example.com",
    "ipv4": lambda dice: f"192.0.2.{dice.randrange(1, 255)}",
    "ip-address": lambda dice: f"192.0.2.{dice.randrange(1, 255)}",
    "ipv6": lambda dice: f"2001:db8::{dice.randrange(1, 65536):x}",
    "uri": lambda dice: f"https://example.com/{_word(dice)}",
    "iri": lambda dice: f"https://example.com/{_word(dice)}",
    "uri-reference": lambda dice: f"/{_word(dice)}",
    "iri-reference": lambda dice: f"/{_word(dice)}",
    "uri-template": lambda dice: f"https://example.com/{_word(dice)}/{{id}}",
    "uuid": _uuid,
    "json-pointer": lambda dice: f"/{_word(dice)}",
    "relative-json-pointer": lambda dice: f"1/{_word(dice)}",
    "regex": lambda dice: f"^{_word(dice)}$",
    "color": lambda dice: f"#{dice.getrandbits(24):06x}",
    "byte": lambda dice: f"{_word(dice, 8)}",
}
# Strings for a low `maxLength`.
_SHORT: dict[str, tuple[str, ...]] = {
    "duration": ("P1D", "P1W"),
    "email": ("a@example.com", "a@b.co"),
    "idn-email": ("a@example.com", "a@b.co"),
    "hostname": ("example.com", "a.co", "a"),
    "host-name": ("example.com", "a.co", "a"),
    "idn-hostname": ("example.com", "a.co", "a"),
    "ipv4": ("1.1.1.1",),
    "ip-address": ("1.1.1.1",),
    "ipv6": ("::1", "::", "2001:0db8:0000:0000:0000:0000:0000:0001"),
    "uri": ("https://a.co", "a:b"),
    "iri": ("https://a.co", "a:b"),
    "uri-reference": ("/a", "a", ""),
    "iri-reference": ("/a", "a", ""),
    "uri-template": ("/{a}", "a", ""),
    "json-pointer": ("/a", ""),
    "relative-json-pointer": ("0",),
    "regex": ("a", "", "^[a-z]+$"),
    "color": ("red", "#abc"),
    "date-time": ("2025-01-01T00:00:00.123456+00:00",),
    "time": ("09:30:00+00:00",),
}
# The start and the end of a string that may have any number of letters between them.
_PADDED: dict[str, tuple[str, str]] = {
    "uri": ("https://example.com/", ""),
    "iri": ("https://example.com/", ""),
    "uri-reference": ("/", ""),
    "iri-reference": ("/", ""),
    "uri-template": ("https://example.com/", ""),
    "json-pointer": ("/", ""),
    "relative-json-pointer": ("1/", ""),
    "regex": ("^", "$"),
}
