"""What is wrong with an input file or with one of its lines, in the words its owner reads."""

from dataclasses import dataclass
from typing import Any

QUOTED_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Fault:
    """One entry of a batch's `errors`. `line` counts from 1; None: the file as a whole. `param` is a path in the line."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None

    def render(self) -> dict[str, Any]:
        return {"code": self.code, "line": self.line, "message": self.message, "param": self.param}


def quoted(value: object) -> str:
    """A user's value for a message: short, and with nothing in it that acts on a terminal, a page or `jsonb`."""
    # Cut before it is escaped: a value can be megabytes.
    text = value[: QUOTED_CHARACTERS + 1] if isinstance(value, str) else value
    shown = repr(text) if isinstance(text, str | int | float | bool | None) else f"{type(value).__name__}"
    return shown if len(shown) <= QUOTED_CHARACTERS else shown[: QUOTED_CHARACTERS - 1] + "…"
