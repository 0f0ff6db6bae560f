"""Exported books of a month, verified from their files alone: no database is asked."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from xalen_batch.billing import books
from xalen_batch.billing.books import Section

FORMAT = 1
MANIFEST = "manifest.json"
# A longer line is no record.
LONGEST = 1024 * 1024


class Invalid(Exception):
    """The files are not those of the month's sign-off; the message says what differs."""


def verify(folder: Path, *, head: str | None = None) -> dict[str, Any]:
    """The manifest of a folder whose files have its hashes.

    `head`: the head that the month was signed off with, as it was noted elsewhere. Without it, the
    files are only shown to agree with each other. Raises Invalid, and OSError for a missing file.
    """
    manifest = _manifest(folder / MANIFEST)
    found = []
    for name in books.SECTIONS:
        section = books.chain(_records(folder / f"{name}.jsonl"))
        expected = manifest["sections"][name]
        shown = {"records": section.records, "head": section.head.hex()}
        if shown != expected:
            raise Invalid(f"{name}.jsonl: {shown}, but the manifest has {expected}")
        found.append(section)
    _verify_head(manifest, found, head)
    return manifest


def _verify_head(manifest: dict[str, Any], found: list[Section], head: str | None) -> None:
    month = _month(manifest["month"])
    computed = books.month_head(bytes.fromhex(manifest["previous"]), month, found).hex()
    if computed != manifest["head"]:
        raise Invalid(f"head: {computed}, but the manifest has {manifest['head']}")
    if head is not None and computed != head.lower():
        raise Invalid(f"head: {computed}, but {head} was asked for")


def _manifest(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
        shape = {
            "format": FORMAT,
            "month": f"{_month(found['month']):%Y-%m}",
            "previous": bytes.fromhex(found["previous"]).hex(),
            "sections": {
                name: {"records": int(each["records"]), "head": bytes.fromhex(each["head"]).hex()}
                for name, each in found["sections"].items()
            },
            "head": bytes.fromhex(found["head"]).hex(),
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Invalid(f"{path.name}: it is not a manifest: {error}") from error
    if found != shape or set(found["sections"]) != set(books.SECTIONS):
        raise Invalid(f"{path.name}: it is not a manifest of format {FORMAT}")
    return shape


def _month(text: str) -> date:
    return datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC).date()


def _records(path: Path) -> Iterator[bytes]:
    with path.open("rb") as lines:
        while line := lines.readline(LONGEST + 1):
            if not line.endswith(b"\n"):
                raise Invalid(f"{path.name}: its last record is cut off, or too long")
            yield line[:-1]
