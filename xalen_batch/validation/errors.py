"""The faults of an input file and of its lines, in the words that the API shows."""

from dataclasses import dataclass, field, replace
from typing import Any

from xalen_batch.billing.terms import Terms
from xalen_batch.config import settings

TOO_MANY = "too_many_tasks"
TOO_MANY_INPUTS = "too_many_inputs"
# Faults of the file, at the first line that is too many.
OF_FILE = frozenset({TOO_MANY, TOO_MANY_INPUTS})
DUPLICATE = "duplicate_custom_id"


@dataclass(frozen=True, slots=True)
class Fault:
    """One entry of a batch's `errors`, the `BatchError` of OpenAI's clients.

    `line` is a line number from 1, or None for the whole file. `param` is a path in the line.
    `custom_id` is that of the line, if it is readable and no earlier line has it.
    """

    code: str
    message: str
    line: int | None = None
    param: str | None = None
    custom_id: str | None = None

    @property
    def is_of_line(self) -> bool:
        """Whether the fault is of one line, so that the other lines could run."""
        return self.line is not None and self.code not in OF_FILE

    def render(self) -> dict[str, Any]:
        return {"code": self.code, "line": self.line, "message": self.message, "param": self.param}


@dataclass
class Faults:
    """The first `max_reported_errors` faults of a file, and the number of the others."""

    kept: list[Fault] = field(default_factory=list)
    unlisted: int = 0

    def add(self, fault: Fault) -> None:
        if len(self.kept) < settings().max_reported_errors:
            self.kept.append(fault)
        else:
            self.unlisted += 1

    def extend(self, other: "Faults", lines_before: int) -> None:
        """Append the faults of the file's next piece, whose lines are numbered from 1."""
        for fault in other.kept:
            line = None if fault.line is None else fault.line + lines_before
            self.add(replace(fault, line=line))
        self.unlisted += other.unlisted

    @property
    def are_of_lines(self) -> bool:
        """Whether the file has faults, and each is of one line."""
        return bool(self.kept) and all(fault.is_of_line for fault in self.kept)

    @property
    def count(self) -> int:
        return len(self.kept) + self.unlisted

    def __bool__(self) -> bool:
        return bool(self.kept)

    def render(self) -> list[dict[str, Any]]:
        """The `data` of a batch's `errors`; the last entry has the number of unlisted faults."""
        shown = [fault.render() for fault in self.kept]
        if self.unlisted:
            remedy = "Correct those above, then validate the file again."
            message = f"{self.unlisted:,} more errors are not listed. {remedy}"
            shown.append(Fault("too_many_errors", message).render())
        return shown


def refused(model: str, terms: Terms) -> Fault | None:
    """The fault of a batch that names a model which its terms refuse; None if they allow it."""
    refusal = terms.refusal(model)
    return None if refusal is None else Fault(refusal.code, refusal.message, param="body.model")
