"""Public ids: a prefix that names the kind, and the 32 hex digits of a time-ordered UUID."""

from typing import Literal
from uuid import UUID

import uuid_utils

Kind = Literal["file", "batch", "inv", "key", "acct", "sched", "run"]
# What an id is of, in words.
NOUNS: dict[Kind, str] = {
    "file": "file",
    "batch": "batch",
    "inv": "invoice",
    "key": "key",
    "acct": "account",
    "sched": "schedule",
    "run": "run",
}
SEPARATOR: dict[str, str] = {"file": "-"}
# What the fields of a log event are ids of, by the noun of their name: `batch_id`, `input_file_id`.
FIELDS: dict[str, Kind] = {noun: kind for kind, noun in NOUNS.items()}


def new() -> UUID:
    """A UUIDv7: ids of one process sort by creation."""
    return UUID(int=uuid_utils.uuid7().int)


def render(kind: Kind, value: UUID) -> str:
    """`batch_0192…`, `file-0192…`."""
    return f"{kind}{SEPARATOR.get(kind, '_')}{value.hex}"


def shown(field: str, value: UUID) -> str:
    """The public id of an object whose kind a field is named after: `batch_id`, `input_file_id`.

    Of another field the UUID's text.
    """
    kind = (
        FIELDS.get(field.removesuffix("_id").rpartition("_")[2]) if field.endswith("_id") else None
    )
    return str(value) if kind is None else render(kind, value)


def parse(kind: Kind, text: str) -> UUID | None:
    """The UUID in a public id of that kind, or None when it is no such id."""
    prefix = f"{kind}{SEPARATOR.get(kind, '_')}"
    digits = text.removeprefix(prefix)
    if digits == text or len(digits) != 32 or not set(digits) <= set("0123456789abcdef"):
        return None
    return UUID(hex=digits)


def line_id(batch: UUID, line_no: int) -> str:
    """`batch_req_…` of a line: derived, so that every attempt and every download agree."""
    return f"batch_{request_id(batch, line_no)}"


def request_id(batch: UUID, line_no: int) -> str:
    """The `X-Request-Id` a line is sent to its backend with, and is shown in its output line."""
    return f"req_{batch.hex}{line_no:06x}"
