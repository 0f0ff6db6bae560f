"""How a batch is shown to people."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from xalen_batch.cli import waits, windows
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
# Counts of lines that nobody ran, in servers that have them.
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
    """Completed, and every line of it."""
    return bool(batch["status"] == "completed" and batch["request_counts"]["failed"] == 0)


def unsuccessful(batch: dict[str, Any]) -> int:
    """Lines that ended without success, which are those of its error file."""
    counts = batch["request_counts"]
    return ended_lines(counts) - int(counts["completed"])


def ended_lines(counts: dict[str, int]) -> int:
    """Lines that have ended, one way or another."""
    return sum(counts.get(how, 0) for how in ("completed", "failed", *UNRUN))


def say_outcome(batch: dict[str, Any]) -> None:
    """How it ended, in one line on stderr."""
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
    """Its validation errors on stderr: the first of them, and the command that shows the rest."""
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
    """Errors of an input file as `name:line: code: message`; `shown` None: all of them."""
    for error in errors[:shown]:
        place = safe(name) if error["line"] is None else f"{safe(name)}:{error['line']}"
        console.print(
            f"{place}: {error['code']}: {safe(error['message'])}", style="red", soft_wrap=True
        )
    if left := len(errors) - len(errors[:shown]):
        console.print(f"… and {counted(left, 'more error')}", soft_wrap=True)


def table_of(batches: Sequence[dict[str, Any]]) -> None:
    """Batches, the newest first."""
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
    """Every field of one batch."""
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
        else:
            yield name, "-" if value is None else value


def _usage(usage: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The token counts of a batch, and how many of them the server counted itself, if it did."""
    for key, value in usage.items():
        if isinstance(value, int):
            yield key, value
    for part in ("input", "output"):
        if tokens := (usage.get(f"{part}_tokens_details") or {}).get("counted_tokens"):
            yield f"counted_{part}_tokens", tokens


def _lines_of(batch: dict[str, Any]) -> str:
    counts = batch["request_counts"]
    return f"{figure(ended_lines(counts))}/{figure(counts['total'])}"
