"""`schedules list`, `schedules show`."""

from typing import Annotated

import typer

from xalen_batch.cli.client import ApiOptions
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import Json, ScheduleId, examples
from xalen_batch.cli.output import print_json, print_list, say, say_more
from xalen_batch.cli.schedules import view
from xalen_batch.states import ScheduleStatus

STATUS_HELP = f"Only schedules in this status: {', '.join(ScheduleStatus)}."

commands = typer.Typer()


@commands.command(
    "list",
    epilog=examples(
        "xalen-batch schedules list",
        "xalen-batch schedules list --status paused --json | jq -r '.data[].id'",
    ),
)
@with_option_groups
def list_schedules(
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most schedules to show, the newest first.")
    ] = 50,
    status: Annotated[
        ScheduleStatus | None, typer.Option(metavar="STATUS", help=STATUS_HELP)
    ] = None,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """List schedules: when each fires next, and how its latest runs ended, the newest run last."""
    found, has_more = api.connect().listing(limit, "/schedules", status=status)
    if as_json:
        print_list(found, has_more=has_more)
    elif found:
        view.table_of(found)
        if has_more:
            say_more(len(found))
    else:
        say(
            "No schedules yet. `xalen-batch schedules create --help` shows how to make one."
            if status is None
            else f"No schedule has the status {status}."
        )


@commands.command(
    epilog=examples(
        "xalen-batch schedules show sched_0192…",
        "xalen-batch schedules show sched_0192… --json | jq .inbox.pending",
    )
)
@with_option_groups
def show(schedule_id: ScheduleId, as_json: Json = False, *, api: ApiOptions) -> None:
    """Show every field of a schedule."""
    schedule = api.connect().get(f"/schedules/{schedule_id}")
    if as_json:
        print_json(schedule)
    else:
        view.details(schedule)
