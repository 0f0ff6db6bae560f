"""What a batch waits for, as the API says it, for a person who looks on."""

from typing import Any

from xalen_batch.cli import clock, windows
from xalen_batch.cli.output import say


class Told:
    """Says on stderr what a batch waits for, once each time that changes, and when it goes on."""

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
    """The sentence, and since when that is so."""
    since = waiting.get("since")
    return f"{waiting['message']}" + ("" if since is None else f" Since {clock.utc(since)}.")
