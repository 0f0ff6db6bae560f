"""Options that many commands share, and the examples at the end of each help text."""

import re
from collections.abc import Iterator
from typing import Annotated

import typer

# Columns of a line of an example: 80, less the margins of the help text.
WIDEST = 76
CONTINUED = " \\"
_WORD = r"""(?:[^\s"']|"[^"]*"|'[^']*')+"""
# Parts of a command: its name with its arguments, each option with its value, and each further
# command with its operator.
PARTS = re.compile(rf"{_WORD}(?: (?!-|&&|\|){_WORD})*")

BaseUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help=(
            "Address of the API; give --api-key with it, unless it is the saved address. "
            "If not given: XALEN_BASE_URL, OPENAI_BASE_URL, or credentials.toml."
        ),
        rich_help_panel="Connection",
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help=(
            "Your key for that server. If not given: XALEN_API_KEY, OPENAI_API_KEY, or"
            " credentials.toml."
        ),
        rich_help_panel="Connection",
    ),
]
Live = Annotated[
    bool,
    typer.Option(
        "--live",
        help="Use the live key of credentials.toml instead of the test key.",
        rich_help_panel="Connection",
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print JSON on stdout. Messages and errors stay text, on stderr."),
]


def _batch_id(text: str) -> str:
    if not text.startswith("batch_"):
        raise typer.BadParameter(
            f"{text!r} is not the id of a batch, `batch_…`. `xalen-batch list` shows the ids."
        )
    return text


def schedule_id(text: str | None) -> str | None:
    if text is not None and not text.startswith("sched_"):
        raise typer.BadParameter(
            f"{text!r} is not the id of a schedule, `sched_…`. `xalen-batch schedules list` shows"
            " the ids."
        )
    return text


BatchId = Annotated[
    str, typer.Argument(metavar="ID", help="The batch, `batch_…`.", callback=_batch_id)
]
ScheduleId = Annotated[
    str, typer.Argument(metavar="ID", help="The schedule, `sched_…`.", callback=schedule_id)
]
OfSchedule = Annotated[
    str | None,
    typer.Option(
        metavar="ID", help="Only batches of this schedule, `sched_…`.", callback=schedule_id
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        min=0, metavar="SECONDS", help="Stop waiting after this time (exit 5); the batch goes on."
    ),
]


def examples(*commands: str) -> str:
    """An epilog with examples, one on a line.

    A long command is continued behind a backslash, so that it can be pasted from 80 columns.
    """
    return "\b\n" + "\n".join(
        ("Examples:", *(f"  {line}" for command in commands for line in _lines(command)))
    )


def _lines(command: str) -> Iterator[str]:
    """The command in lines of at most WIDEST characters.

    Broken before an option or operator, never inside quotes.
    """
    first, *rest = PARTS.findall(command)
    line = first
    for part in rest:
        if len(line) + len(part) + len(CONTINUED) >= WIDEST:
            yield line + CONTINUED
            line = f"    {part}"
        else:
            line = f"{line} {part}"
    yield line
