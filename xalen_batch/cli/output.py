"""Output: data on stdout, messages on stderr, both without terminal control sequences."""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

# Control characters, bidirectional overrides, line separators, lone surrogates.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def safe(value: object) -> str:
    """A user's text on one line, with control characters escaped (`\\x1b`)."""
    return _UNSAFE.sub(
        lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), str(value)
    )


class SafeConsole(Console):
    """Removes control sequences from all text, as a second line of defence behind `safe`.

    Rich's own control codes pass.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not _UNSAFE.search(segment.text):
                yield segment
            else:
                yield Segment("\n".join(map(safe, segment.text.split("\n"))), segment.style)


# No markup, emoji or highlighting, which could interpret a user's text.
# Tables fold to the width of a terminal, and never in a pipe.
WIDE = 10_000
STDOUT = SafeConsole(
    markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else WIDE
)
STDERR = SafeConsole(
    stderr=True,
    markup=False,
    emoji=False,
    highlight=False,
    width=None if sys.stderr.isatty() else WIDE,
)


def print_line(value: object) -> None:
    """Print one value alone on a line of stdout, for scripts."""
    sys.stdout.write(f"{safe(value)}\n")


def say(text: str, style: str | None = None) -> None:
    """Print a message for people on stderr."""
    STDERR.print(text, style=style, soft_wrap=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout, in ASCII."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_list(data: Sequence[Mapping[str, Any]], *, has_more: bool = False) -> None:
    """Print a list object on stdout, as the API has it.

    `has_more`: the list is not complete.
    """
    print_json({"object": "list", "data": data, "has_more": has_more})


def say_more(number: int, which: str = "newest") -> None:
    """Say on stderr that a list ends at its --limit."""
    say(f"These are the {which} {figure(number)}. --limit shows more.", style="dim")


def grid(
    headers: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()
) -> Table:
    """A table. `right` names the columns of figures, which fold last.

    Cells are made safe, except a `Text`, which has styles of our own.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in headers:
        is_figure = header in right
        table.add_column(
            header, justify="right" if is_figure else "left", no_wrap=is_figure, overflow="fold"
        )
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else safe(cell) for cell in row))
    return table


def fields(pairs: Iterable[tuple[str, object]]) -> Table:
    """Print names and values, one pair on a line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, value if isinstance(value, Text) else safe(value))
    return table


def show(table: Table, console: Console = STDOUT) -> None:
    """Print a table. In a pipe, its lines have no trailing blanks."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as printed:
        console.print(table)
    console.file.writelines(f"{line.rstrip()}\n" for line in printed.get().splitlines())


def figure(number: object) -> str:
    """A count with thousands separators; any other value, such as money, unchanged."""
    return f"{number:,}" if isinstance(number, int) else str(number)


def counted(number: int, noun: str) -> str:
    """A count with its noun: `1 line`, `1,000 lines`."""
    return f"{figure(number)} {noun}{'' if number == 1 else 's'}"


def moment(timestamp: int | None) -> str:
    """Unix seconds as UTC, or a dash."""
    return (
        "-"
        if timestamp is None
        else f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M:%S} UTC"
    )


def pairs(value: dict[str, Any]) -> str:
    """A mapping as `a=1 b=2`."""
    return " ".join(f"{name}={item}" for name, item in value.items())
