"""What is wrong with an input file or with one of its lines, in the words its owner reads."""

from dataclasses import dataclass, field
from typing import Any

from xalen_batch.billing.terms import Terms
from xalen_batch.config import settings

QUOTED_CHARACTERS = 60
TOO_MANY = "too_many_tasks"


@dataclass(frozen=True, slots=True)
class Fault:
    """One entry of a batch's `errors`. `line` counts from 1; None: the file as a whole. `param` is
    a path in the line.

    `custom_id`: the line's own, where it can be read and no line before has it.
    """

    code: str
    message: str
    line: int | None = None
    param: str | None = None
    custom_id: str | None = None

    @property
    def is_of_line(self) -> bool:
        """Whether the other lines could run without this one."""
        return self.line is not None and self.code != TOO_MANY

    def render(self) -> dict[str, Any]:
        return {"code": self.code, "line": self.line, "message": self.message, "param": self.param}


@dataclass
class Faults:
    """The faults of one file: the first `max_reported_errors` of them, and the number of the rest."""

    kept: list[Fault] = field(default_factory=list)
    unlisted: int = 0

    def add(self, fault: Fault) -> None:
        if len(self.kept) < settings().max_reported_errors:
            self.kept.append(fault)
        else:
            self.unlisted += 1

    @property
    def are_of_lines(self) -> bool:
        """Whether there are some, and none is of the file as a whole."""
        return bool(self.kept) and all(fault.is_of_line for fault in self.kept)

    @property
    def count(self) -> int:
        return len(self.kept) + self.unlisted

    def __bool__(self) -> bool:
        return bool(self.kept)

    def render(self) -> list[dict[str, Any]]:
        """The `data` of a batch's `errors`; a last entry tells how many more there are."""
        shown = [fault.render() for fault in self.kept]
        if self.unlisted:
            remedy = "Correct those above, then validate the file again."
            shown.append(
                Fault(
                    "too_many_errors", f"{self.unlisted:,} more errors are not listed. {remedy}"
                ).render()
            )
        return shown


def refused(model: str, terms: Terms) -> Fault | None:
    """Why a batch on these terms may not name a model."""
    refusal = terms.refusal(model)
    return None if refusal is None else Fault(refusal.code, refusal.message, param="body.model")


def quoted(value: object) -> str:
    """A user's value for a message: short, and with nothing in it that acts on a terminal, a page
    or `jsonb`.
    """
    # Cut before it is escaped: a value can be megabytes.
    text = value[: QUOTED_CHARACTERS + 1] if isinstance(value, str) else value
    shown = (
        repr(text)
        if isinstance(text, str | int | float | bool | None)
        else f"{type(value).__name__}"
    )
    return shown if len(shown) <= QUOTED_CHARACTERS else shown[: QUOTED_CHARACTERS - 1] + "…"
