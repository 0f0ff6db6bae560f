"""The reason that a batch waits, for a person who watches it."""

from typing import Any

from xalen_batch.cli import clock, windows
from xalen_batch.cli.output import say


class WaitReporter:
    """Prints the reason that a batch waits on stderr, each time that it changes or ends."""

    def __init__(self) -> None:
        self._told: tuple[Any, Any, Any] = (None, None, None)

    def update(self, batch: dict[str, Any]) -> None:
        opening, waiting = windows.waits_until(batch), batch.get("waiting") or {}
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


def shown(waiting: dict[str, Any]) -> str:
    """The sentence, with the time since when it is true."""
    since = waiting.get("since")
    return f"{waiting['message']}" + ("" if since is None else f" Since {clock.utc(since)}.")
