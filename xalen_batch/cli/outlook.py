"""The outlook of a batch, for people: its estimated end, what is ahead, and its errors so far."""

from collections.abc import Iterator
from typing import Any

from xalen_batch.cli import clock
from xalen_batch.cli.output import counted, figure, safe, say

BASES = {"measured": "at the pace of the last {}", "average": "at its average pace of {}"}


class RiskReporter:
    """Says once on stderr that a batch will miss its deadline, and each code of errors once."""

    def __init__(self) -> None:
        self._is_late = False
        self._codes: set[str] = set()

    def update(self, batch: dict[str, Any]) -> None:
        found = batch.get("outlook") or {}
        if found.get("is_late") and not self._is_late:
            say(f"{batch['id']} {late(batch)}", style="yellow")
        self._is_late = bool(found.get("is_late", self._is_late))
        for errors in found.get("errors", ()):
            if errors["code"] not in self._codes:
                self._codes.add(errors["code"])
                say(f"{batch['id']} has errors: {example(errors)}", style="yellow")


def late(batch: dict[str, Any]) -> str:
    """That a batch will miss its deadline, with the remedies."""
    found = batch["outlook"]
    end = found["estimated_end"]
    when = "no line ends" if end is None else f"it would end {clock.utc(end)}"
    return (
        f"will most likely miss its deadline, {clock.utc(batch['expires_at'])}: {when}"
        f"{_pace(found)}. Lines that have not run then expire unbilled; `xalen-batch retry` runs"
        " them again."
    )


def _pace(found: dict[str, Any]) -> str:
    if found["basis"] not in BASES or found["measured_seconds"] is None:
        return ""
    span = _span(found["measured_seconds"])
    return " " + BASES[found["basis"]].format(span)


def _span(seconds: float) -> str:
    """A duration in its largest whole unit: `45 s`, `12 min`, `3 h`."""
    for unit, length in (("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def example(errors: dict[str, Any]) -> str:
    """`http_503, 12 lines, such as line 7 (order-17)`."""
    text = f"{errors['code']}, {counted(errors['count'], 'line')}"
    if errors["line"] is None:
        return text
    return f"{text}, such as line {figure(errors['line'])} ({safe(errors['custom_id'])})"


def shown(batch: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The rows of `show`."""
    found = batch["outlook"]
    end = found["estimated_end"]
    if end is not None:
        rate = f"{found['lines_per_second']:g} lines/s"
        yield "estimated_end", f"{clock.utc(end)}{_pace(found)}, {rate}"
    else:
        yield "estimated_end", "unknown: no line has ended"
    yield "lines_left", figure(found["lines_left"])
    ahead = counted(found["lines_ahead"], "line")
    yield "lines_ahead", f"{ahead} of your other batches, which have an earlier deadline"
    if found["is_late"]:
        yield "at_risk", f"It {late(batch)}"
    for errors in found["errors"]:
        yield "errors_so_far", example(errors)
