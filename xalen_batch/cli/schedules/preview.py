"""`schedules preview`: the next fires."""

from typing import Annotated, Any

import typer

from xalen_batch.cli import clock
from xalen_batch.cli.client import ApiOptions
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import Json, examples, schedule_id
from xalen_batch.cli.output import print_json
from xalen_batch.cli.schedules import request, view
from xalen_batch.cli.schedules.options import CRON_HELP, WHEN, Ends, Jitter, Starts, Timezone

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "xalen-batch schedules preview sched_0192…",
        'xalen-batch schedules preview --cron "30 2 * * *" --timezone Europe/Berlin',
        'xalen-batch schedules preview --cron "30 2 * * sun" --timezone America/New_York --starts'
        " 2027-03-01 --count 5",
    )
)
@with_option_groups
def preview(
    schedule_id: Annotated[
        str | None,
        typer.Argument(
            metavar="ID", help="The schedule, `sched_…`; or give --cron.", callback=schedule_id
        ),
    ] = None,
    cron: Annotated[
        str | None, typer.Option(metavar="EXPRESSION", help=CRON_HELP, rich_help_panel=WHEN)
    ] = None,
    timezone: Timezone = None,
    starts: Starts = None,
    ends: Ends = None,
    jitter: Jitter = None,
    count: Annotated[
        int, typer.Option(min=1, max=100, metavar="N", help="How many fires to show.")
    ] = 10,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """Show the next fires of a schedule or of a cron expression, and the clock changes between
    them.
    """
    if schedule_id is None:
        found = api.connect().post(
            "/schedules/preview", _expression(cron, timezone, starts, ends, jitter), count=count
        )
    elif any(value is not None for value in (cron, timezone, starts, ends, jitter)):
        raise typer.BadParameter(
            "give either ID, or --cron and what belongs to it.", param_hint="ID"
        )
    else:
        found = api.connect().get(f"/schedules/{schedule_id}/preview", count=count)
    if as_json:
        print_json(found)
    else:
        view.show_fires(found)


def _expression(
    cron: str | None, timezone: str | None, starts: str | None, ends: str | None, jitter: int | None
) -> dict[str, Any]:
    if cron is None:
        raise typer.BadParameter(
            "what is to be previewed? Give ID or --cron.", param_hint="ID / --cron"
        )
    zone = clock.zone_or_machines(timezone)
    request.check_when(cron, zone)
    body = {
        "cron": cron,
        "timezone": zone,
        "starts_at": None if starts is None else clock.moment(starts, "--starts"),
        "ends_at": None if ends is None else clock.moment(ends, "--ends"),
        "jitter": jitter or 0,
    }
    clock.say_zone(timezone)
    return body
