"""The reason that a batch waits, for a person who watches it."""

import time
from typing import Any

from xalen_batch.cli import clock, windows
from xalen_batch.cli.output import say

# Reasons that pass by themselves, and seconds after which they are told.
USUAL = frozenset({"validation", "rate_limit", "turn"})
TOLD_AFTER = 5.0


class WaitReporter:
    """Prints the reason that a batch waits on stderr, each time that it changes or ends.

    What passes by itself is told if it lasts.
    """

    def __init__(self) -> None:
        self._told: tuple[Any, Any, Any] = (None, None, None)
        # The reason of the last update, and since when.
        self._usual: tuple[Any, float] = (None, 0.0)

    def update(self, batch: dict[str, Any]) -> None:
        opening, waiting = windows.waits_until(batch), batch.get("waiting") or {}
        if not self._lasts(waiting.get("reason")):
            waiting = {}
        now = (waiting.get("reason"), waiting.get("model"), opening)
        if now == self._told:
            return
        self._told = now
        if opening is not None:
            windows.say_waiting(batch)
        elif waiting:
            say(f"{batch['id']} waits. {shown(waiting)}", style="yellow")
        else:
            say(f"{batch['id']} goes on.")

    def _lasts(self, reason: str | None) -> bool:
        """Whether a reason is told: a usual one if every update for TOLD_AFTER seconds had it."""
        now = time.monotonic()
        if self._usual[0] != reason:
            self._usual = (reason, now)
        return reason not in USUAL or now - self._usual[1] >= TOLD_AFTER


def is_unusual(batch: dict[str, Any]) -> bool:
    """Whether a batch waits for something that does not pass by itself."""
    return (batch.get("waiting") or {}).get("reason", "turn") not in USUAL


def shown(waiting: dict[str, Any]) -> str:
    """The sentence, with the time since when it is true."""
    since = waiting.get("since")
    return f"{waiting['message']}" + ("" if since is None else f" Since {clock.utc(since)}.")
