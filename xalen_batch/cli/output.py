"""What is printed: data on stdout, messages on stderr, and nothing that a terminal would obey."""

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
    """Text of a user's on one line, with whatever could steer a terminal shown as its escape
    (`\\x1b`).
    """
    return _UNSAFE.sub(
        lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), str(value)
    )


class SafeConsole(Console):
    """Prints no text that steers the terminal, whoever forgot to make it safe; what Rich itself
    steers it with passes.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not _UNSAFE.search(segment.text):
                yield segment
            else:
                yield Segment("\n".join(map(safe, segment.text.split("\n"))), segment.style)


# No markup, emoji or highlighting: text that came from a user is never more than text.
# A table fits itself to a terminal, and is never folded into a pipe.
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
    """A value alone on its line of stdout, for a script to take."""
    sys.stdout.write(f"{safe(value)}\n")


def say(text: str, style: str | None = None) -> None:
    """A message to the person at the terminal, on stderr."""
    STDERR.print(text, style=style, soft_wrap=True)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout, in ASCII."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_list(data: Sequence[Mapping[str, Any]], *, has_more: bool = False) -> None:
    """Objects on stdout as the one JSON object that stands for a list, as in the API.

    `has_more`: not all of them are in it.
    """
    print_json({"object": "list", "data": data, "has_more": has_more})


def say_more(number: int) -> None:
    """That a list stops at its --limit, on stderr."""
    say(f"These are the newest {figure(number)}. --limit shows more.", style="dim")


def grid(
    headers: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()
) -> Table:
    """A table; `right` names the columns of figures, which are the last to be folded.

    Cells are made safe, but for text with styles of our own.
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
    """Names and values, one pair a line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, value if isinstance(value, Text) else safe(value))
    return table


def show(table: Table, console: Console = STDOUT) -> None:
    """Print a table; in a pipe without the blanks that fill up its lines."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as printed:
        console.print(table)
    console.file.writelines(f"{line.rstrip()}\n" for line in printed.get().splitlines())


def figure(number: object) -> str:
    """A count with thousands separators; anything else, money above all, exactly as it came."""
    return f"{number:,}" if isinstance(number, int) else str(number)


def counted(number: int, noun: str) -> str:
    """`1 line`, `1,000 lines`."""
    return f"{figure(number)} {noun}{'' if number == 1 else 's'}"


def moment(timestamp: int | None) -> str:
    """Unix seconds as UTC, or a dash."""
    return (
        "-"
        if timestamp is None
        else f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M:%S} UTC"
    )


def pairs(value: dict[str, Any]) -> str:
    """`a=1 b=2`."""
    return " ".join(f"{name}={item}" for name, item in value.items())
