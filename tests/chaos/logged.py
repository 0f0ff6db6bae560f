"""Errors in the logs of our processes: a bug that was caught is a bug."""

import json
from pathlib import Path
from typing import Any

from tests.chaos.system import System


class Reader:
    """Reads the lines that are logged from now on."""

    def __init__(self, system: System) -> None:
        self._starts: dict[Path, int] = {
            part.log: part.log.stat().st_size for part in system.parts.values()
        }

    def errors(self) -> list[str]:
        """One sentence for each kind of error that our code logged. Errors that libraries log about
        lost connections do not count.
        """
        found: dict[str, int] = {}
        for log, start in self._starts.items():
            with log.open("rb") as lines:
                lines.seek(start)
                for line in lines:
                    if words := _error(line):
                        found[f"{log.stem} logged {words}"] = (
                            found.get(f"{log.stem} logged {words}", 0) + 1
                        )
        return [f"{words} ({count} ×)" for words, count in found.items()]


def _error(line: bytes) -> str | None:
    if line.startswith(b"Traceback"):
        return "a traceback"
    try:
        event: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or event.get("level") not in ("error", "critical"):
        return None
    if not str(event.get("logger", "")).startswith("xalen_batch"):
        return None
    return f"{event.get('event')}: {event.get('error', '')} at {event.get('at', '')}"
