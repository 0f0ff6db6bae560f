"""Renders batches for people."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from xalen_batch.cli import outlook, waits, windows
from xalen_batch.cli.output import (
    STDERR,
    STDOUT,
    counted,
    fields,
    figure,
    moment,
    pairs,
    safe,
    say,
    show,
)
from xalen_batch.cli.stacked import Layout, stacked

SHOWN_ERRORS = 20
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
# Counts of lines that were not run. Older servers do not send them.
UNRUN = ("cancelled", "expired")
MOMENTS = (
    "created_at",
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)
STYLES = {"completed": "green", "failed": "red", "expired": "red", "cancelled": "yellow"}
BATCHES: tuple[Layout, ...] = (
    (("id",), ("status",), ("lines",), ("failed",), ("endpoint",), ("created",)),
    (("id", "endpoint"), ("status", "created"), ("lines", "failed")),
    (("id", "endpoint", "created"), ("status", "lines", "failed")),
)


def succeeded(batch: dict[str, Any]) -> bool:
    """Whether the batch is completed and each of its lines succeeded."""
    return bool(batch["status"] == "completed" and batch["request_counts"]["failed"] == 0)


def unsuccessful(batch: dict[str, Any]) -> int:
    """The number of lines that ended without success; its error file has them."""
    counts = batch["request_counts"]
    return ended_lines(counts) - int(counts["completed"])


def ended_lines(counts: dict[str, int]) -> int:
    """The number of lines that have ended, with or without success."""
    return sum(counts.get(how, 0) for how in ("completed", "failed", *UNRUN))


def say_outcome(batch: dict[str, Any]) -> None:
    """Print the outcome of a batch, one line on stderr."""
    counts = batch["request_counts"]
    text = (
        f"{batch['id']} {batch['status']}: {figure(counts['completed'])} of"
        f" {figure(counts['total'])} lines succeeded"
    )
    text += "".join(
        f", {figure(counts[how])} {how}" for how in ("failed", *UNRUN) if counts.get(how)
    )
    say(
        text,
        style=(
            STYLES.get(batch["status"])
            if succeeded(batch) or batch["status"] != "completed"
            else "yellow"
        ),
    )


def say_errors(batch: dict[str, Any]) -> None:
    """Print its first validation errors on stderr, and the command that shows the others."""
    if errors := batch_errors(batch):
        print_line_errors(errors, batch["input_file_id"])
    if len(errors) > SHOWN_ERRORS:
        say(f"`xalen-batch show {batch['id']}` shows every error.")


def batch_errors(batch: dict[str, Any]) -> list[dict[str, Any]]:
    return list((batch.get("errors") or {}).get("data") or [])


def print_line_errors(
    errors: Sequence[dict[str, Any]],
    name: str,
    *,
    shown: int | None = SHOWN_ERRORS,
    console: Console = STDERR,
) -> None:
    """Print errors of an input file as `name:line: code: message`; `shown` None prints all.

    `file` of an error names the file of its line, in place of `name`.
    """
    for error in errors[:shown]:
        file = safe(error.get("file", name))
        place = file if error["line"] is None else f"{file}:{error['line']}"
        console.print(
            f"{place}: {error['code']}: {safe(error['message'])}", style="red", soft_wrap=True
        )
    if left := len(errors) - len(errors[:shown]):
        console.print(f"… and {counted(left, 'more error')}", soft_wrap=True)


def table_of(batches: Sequence[dict[str, Any]]) -> None:
    """Print a table of batches, the newest first."""
    rows = [
        (
            batch["id"],
            batch["status"],
            _lines_of(batch),
            figure(batch["request_counts"]["failed"]),
            batch["endpoint"],
            moment(batch["created_at"]),
        )
        for batch in batches
    ]
    show(stacked(BATCHES, rows, right=("lines", "failed")))


def details(batch: dict[str, Any]) -> None:
    """Print every field of one batch."""
    show(fields(_fields(batch)))
    if errors := batch_errors(batch):
        print_line_errors(errors, batch["input_file_id"], shown=None, console=STDOUT)


def _fields(batch: dict[str, Any]) -> Iterator[tuple[str, object]]:
    for name, value in batch.items():
        if name in ("object", "errors"):
            continue
        if name in MOMENTS:
            yield name, moment(value)
        elif name == "request_counts":
            yield name, pairs({key: figure(count) for key, count in value.items()})
        elif name == "usage" and value:
            yield name, pairs({key: figure(count) for key, count in _usage(value)})
        elif name == "metadata":
            yield name, pairs(value) if value else "-"
        elif name == "execution_window" and value:
            yield name, windows.shown(value)
        elif name == "waiting" and value:
            yield name, waits.shown(value)
        elif name == "outlook":
            if value:
                yield from outlook.shown(batch)
        elif name == "retry_codes" and value:
            yield name, ", ".join(value)
        else:
            yield name, "-" if value is None else value


def _usage(usage: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The token counts of a batch, with the share that the server itself counted."""
    for key, value in usage.items():
        if isinstance(value, int):
            yield key, value
    for part in ("input", "output"):
        if tokens := (usage.get(f"{part}_tokens_details") or {}).get("counted_tokens"):
            yield f"counted_{part}_tokens", tokens


def _lines_of(batch: dict[str, Any]) -> str:
    counts = batch["request_counts"]
    return f"{figure(ended_lines(counts))}/{figure(counts['total'])}"
