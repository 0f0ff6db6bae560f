"""How pages write times, durations, amounts, sizes and states. All times are UTC.

Filters of the templates; those that return Markup escape what they are given.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from markupsafe import Markup

from xalen_batch import money

DASH = "–"
# Class and word for each state that a page shows as a dot and a word.
STATES: dict[str, tuple[str, str]] = {
    "validating": ("run", "Validating"),
    "in_progress": ("run", "Running"),
    "finalizing": ("run", "Finalizing"),
    "completed": ("ok", "Completed"),
    "failed": ("bad", "Failed"),
    "expired": ("warn", "Expired"),
    "cancelling": ("idle", "Cancelling"),
    "cancelled": ("idle", "Cancelled"),
    "waiting": ("warn", "Waiting"),
    "held": ("bad", "Held"),
    "running": ("run", "Running"),
    "succeeded": ("ok", "Succeeded"),
    "skipped": ("idle", "Skipped"),
    "missed": ("warn", "Missed"),
    "active": ("ok", "Active"),
    "paused": ("warn", "Paused"),
    "ended": ("idle", "Ended"),
    "invalid": ("bad", "Invalid"),
    "not_run": ("idle", "Not run"),
    "enabled": ("ok", "Enabled"),
    "disabled": ("bad", "Disabled"),
    "pending": ("run", "Pending"),
    "delivered": ("ok", "Delivered"),
}


def state(name: str) -> Markup:
    """A dot and a word."""
    kind, word = STATES.get(name, ("idle", name))
    return Markup('<span class="st {}">{}</span>').format(kind, word)


def exact(seconds: int | None) -> str:
    """`Thu 19 Nov 2026, 22:14:01 UTC`, of Unix seconds."""
    if seconds is None:
        return DASH
    time = datetime.fromtimestamp(seconds, UTC)
    return f"{time:%a} {time.day} {time:%b %Y, %H:%M:%S} UTC"


def clock(seconds: int, now: int) -> str:
    """`22:14` within 20 hours, else `Thu 19 Nov, 22:14`."""
    time = datetime.fromtimestamp(seconds, UTC)
    if abs(seconds - now) < 20 * 3600:
        return f"{time:%H:%M}"
    return f"{time:%a} {time.day} {time:%b, %H:%M}"


def day(seconds: int) -> str:
    """`Thu 19 Nov`."""
    time = datetime.fromtimestamp(seconds, UTC)
    return f"{time:%a} {time.day} {time:%b}"


def span(seconds: float) -> str:
    """A duration in at most two units: `36 min 45 s`, `1 h 05 min`, `3 d 04 h`."""
    left = max(0, round(seconds))
    if left < 60:
        return f"{left} s"
    minutes, rest = divmod(left, 60)
    if minutes < 60:
        return f"{minutes} min" + (f" {rest:02} s" if rest and minutes < 10 else "")
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h" + (f" {minutes:02} min" if minutes and hours < 10 else "")
    days, hours = divmod(hours, 24)
    return f"{days} d" + (f" {hours:02} h" if hours and days < 10 else "")


def relative(seconds: int, now: int) -> str:
    """`7 s ago`, `in 3 h 20 min`: in steps of a minute from the first one on."""
    gone = abs(now - seconds)
    text = span(gone if gone < 60 else gone // 60 * 60)
    return f"{text} ago" if now >= seconds else f"in {text}"


def time(seconds: int | None, now: int, *, text: str | None = None) -> Markup:
    """A time relative to now, with the exact one on hover."""
    if seconds is None:
        return Markup(DASH)
    stamp = datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        stamp, exact(seconds), relative(seconds, now) if text is None else text
    )


def number(value: int | None) -> str:
    """`50,000`."""
    return DASH if value is None else f"{value:,}"


def digits(amount: Decimal | str | None) -> int:
    """Digits behind the cents of an exact amount."""
    if amount is None:
        return 0
    return len(_rendered(amount).partition(".")[2]) - 2


def longest(amounts: Iterable[Decimal | str | None]) -> int:
    """The most digits behind the cents in a column."""
    return max((digits(amount) for amount in amounts), default=0)


def amount(value: Decimal | str | None) -> Markup:
    """An exact amount: cents in ink, further digits quieter; a minus sign, not a hyphen."""
    if value is None:
        return Markup(DASH)
    text = _rendered(value)
    end = text.index(".") + 3
    head = text[:end].replace("-", "−")
    if len(text) == end:
        return Markup("{}").format(head)
    return Markup('{}<span class="sub">{}</span>').format(head, text[end:])


def cell(value: Decimal | str | None, width: int, classes: str = "") -> Markup:
    """A table cell whose decimal points align in a column of `width` further digits."""
    if value is None:
        return Markup('<td class="n muted {}">–</td>').format(classes)
    pad = "0" * (width - digits(value))
    given = Markup(' data-pad="{}"').format(pad) if pad else ""
    return Markup('<td class="money {}"{}>{}</td>').format(classes, given, amount(value))


def size(count: int) -> str:
    """`82.6 MB`, of bytes."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def percent(part: int, whole: int) -> str:
    """`68.9 %`; never 100 % before all is done."""
    if not whole:
        return DASH
    tenths = part * 1000 // whole
    return f"{tenths / 10:.1f} %"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """`1 line`, `4,120 lines`."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def _rendered(value: Decimal | str) -> str:
    return value if isinstance(value, str) else money.render(value)


FILTERS: dict[str, Any] = {
    "state": state,
    "exact": exact,
    "span": span,
    "number": number,
    "amount": amount,
    "size": size,
    "longest": longest,
    "day": day,
}
GLOBALS: dict[str, Any] = {
    "time": time,
    "clock": clock,
    "cell": cell,
    "percent": percent,
    "plural": plural,
}
