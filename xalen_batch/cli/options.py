"""Options that many commands share, and the examples at the end of each help text."""

from typing import Annotated

import typer

BaseUrl = Annotated[
    str | None,
    typer.Option(
        help="Where the API is; needs --api-key, unless it is the saved address. Else XALEN_BASE_URL, OPENAI_BASE_URL, credentials.toml.",
        rich_help_panel="Connection",
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        help="Your key, for the server of --base-url. Else XALEN_API_KEY, OPENAI_API_KEY, credentials.toml.", rich_help_panel="Connection"
    ),
]
Live = Annotated[bool, typer.Option("--live", help="Use the live key of credentials.toml, not the test key.", rich_help_panel="Connection")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout; an error is words on stderr all the same.")]


def _batch_id(text: str) -> str:
    if not text.startswith("batch_"):
        raise typer.BadParameter(f"{text!r} is not the id of a batch, `batch_…`. `xalen-batch list` shows those there are.")
    return text


def schedule_id(text: str | None) -> str | None:
    if text is not None and not text.startswith("sched_"):
        raise typer.BadParameter(f"{text!r} is not the id of a schedule, `sched_…`. `xalen-batch schedules list` shows those there are.")
    return text


BatchId = Annotated[str, typer.Argument(metavar="ID", help="The batch, `batch_…`.", callback=_batch_id)]
ScheduleId = Annotated[str, typer.Argument(metavar="ID", help="The schedule, `sched_…`.", callback=schedule_id)]
OfSchedule = Annotated[str | None, typer.Option(metavar="ID", help="Only batches of this schedule, `sched_…`.", callback=schedule_id)]
Timeout = Annotated[float | None, typer.Option(min=0, help="Stop waiting after this many seconds (exit 5); the batch goes on.")]


def examples(*commands: str) -> str:
    """An epilog that keeps its lines."""
    return "\b\n" + "\n".join(("Examples:", *(f"  {command}" for command in commands)))
