"""Public ids: a prefix for the kind of object, and the 32 hex digits of a time-ordered UUID."""

from datetime import datetime
from typing import Literal
from uuid import UUID

import uuid_utils

Kind = Literal[
    "file",
    "batch",
    "inv",
    "key",
    "acct",
    "sched",
    "run",
    "resp",
    "evt",
    "whe",
    "upload",
    "part",
    "msgbatch",
    "cn",
]
# The names of the kinds in messages.
NOUNS: dict[Kind, str] = {
    "file": "file",
    "batch": "batch",
    "inv": "invoice",
    "key": "key",
    "acct": "account",
    "sched": "schedule",
    "run": "run",
    "resp": "response",
    "evt": "event",
    "whe": "webhook",
    # A batch, as clients of Anthropic's API see it.
    "msgbatch": "message batch",
    "upload": "upload",
    "part": "part",
    "cn": "credit note",
}
SEPARATOR: dict[str, str] = {"file": "-"}
# Kinds by the noun in the name of a log field: `batch_id`, `input_file_id`.
FIELDS: dict[str, Kind] = {noun: kind for kind, noun in NOUNS.items()}


def new() -> UUID:
    """A UUIDv7. The ids of one process sort by creation."""
    return UUID(int=uuid_utils.uuid7().int)


def at(time: datetime) -> UUID:
    """The least id of a time: ids that were made before it are smaller."""
    return UUID(int=max(int(time.timestamp() * 1000), 0) << 80)


def prefix(kind: Kind) -> str:
    """The part of a public id before the hex digits: `batch_`, `file-`."""
    return f"{kind}{SEPARATOR.get(kind, '_')}"


def render(kind: Kind, value: UUID) -> str:
    """The public id: `batch_0192…`, `file-0192…`."""
    return f"{prefix(kind)}{value.hex}"


def shown(field: str, value: UUID) -> str:
    """The value of a log field: the public id if the field's name ends with a kind and `_id`.

    `batch_id`, `input_file_id`. Other fields show the text of the UUID.
    """
    if not field.endswith("_id"):
        return str(value)
    kind = FIELDS.get(field.removesuffix("_id").rpartition("_")[2])
    return str(value) if kind is None else render(kind, value)


def parse(kind: Kind, text: str) -> UUID | None:
    """The UUID in a public id of this kind; None for any other text."""
    digits = text.removeprefix(prefix(kind))
    if digits == text or len(digits) != 32 or not set(digits) <= set("0123456789abcdef"):
        return None
    return UUID(hex=digits)


def line_id(batch: UUID, line_no: int) -> str:
    """The id of a line, `batch_req_…`: derived, so all attempts and downloads have the same."""
    return f"batch_{request_id(batch, line_no)}"


def request_id(batch: UUID, line_no: int) -> str:
    """The `X-Request-Id` of a line's requests to its backend, which its output line also shows."""
    return f"req_{batch.hex}{line_no:06x}"
