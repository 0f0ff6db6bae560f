"""`schedules create`, `schedules edit`."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from xalen_batch.cli import clock, windows
from xalen_batch.cli.client import ApiClient, ApiOptions
from xalen_batch.cli.failures import ApiError
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import Json, ScheduleId, examples
from xalen_batch.cli.output import print_json, print_line, safe, say
from xalen_batch.cli.schedules import request, view
from xalen_batch.cli.schedules.options import CRON_HELP, WHEN, Cron, Given

SHOWN_FIRES = 3
NAME_HELP = "The schedule's name, such as `tickets`; two schedules may share one."

commands = typer.Typer()


class Clearable(StrEnum):
    """Optional settings of a schedule, by the names of their options."""

    STARTS = "starts"
    ENDS = "ends"
    METADATA = "metadata"
    EXECUTION_WINDOW = "execution-window"
    PAUSE_ON_FAILURE = "pause-on-failure"
    READY_MARKER = "ready-marker"


CLEARED = {Clearable.STARTS: "starts_at", Clearable.ENDS: "ends_at"}


@commands.command(
    epilog=examples(
        'xalen-batch schedules create tickets --cron "30 2 * * *" --timezone Europe/Berlin'
        " --template tickets.jsonl",
        "xalen-batch schedules create searches --cron @daily --inbox --endpoint /v1/rerank",
        'xalen-batch schedules create drop --cron "0 22 * * mon-fri" --prefix "{{scheduled_date}}/"'
        ' --endpoint /v1/chat/completions --execution-window "22:00-06:00" --pause-on-failure 3',
        'id=$(xalen-batch schedules create weekly --cron "0 6 * * mon" --file requests.jsonl)',
    )
)
@with_option_groups
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help=NAME_HELP)],
    cron: Cron,
    given: Given,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """Make a schedule and print its id. One of --file to --inbox names its input."""
    what = request.chosen(given)
    if what is None:
        raise typer.BadParameter(
            "what is it to run? Give one of them.",
            param_hint=" / ".join(map(request.option, request.WHAT)),
        )
    if given.endpoint is None and what in ("prefix", "folder", "inbox"):
        raise typer.BadParameter(
            f"{request.option(what)} needs it, such as /v1/chat/completions.",
            param_hint="--endpoint",
        )
    timezone = clock.zone_or_machines(given.timezone)
    request.check_when(cron, timezone)
    body = {"name": name, "cron": cron} | request.plain(given, timezone) | {"timezone": timezone}
    body |= request.source_or_inbox(given, {})
    clock.say_zone(given.timezone)
    client = api.connect()
    sent = request.send_file(client, given)
    with request.deleted_if_refused(client, sent):
        schedule = client.post("/schedules", body | sent.body)
    if as_json:
        print_json(schedule)
    else:
        print_line(schedule["id"])
    say(f"{safe(schedule['name'])} is schedule {schedule['id']}.")
    _say_next(client, schedule)


@commands.command(
    epilog=examples(
        'xalen-batch schedules edit sched_0192… --cron "30 3 * * *"',
        "xalen-batch schedules edit sched_0192… --file requests.jsonl --overlap buffer_one",
        "xalen-batch schedules edit sched_0192… --name tickets-eu --clear ends --clear"
        " execution-window",
    )
)
@with_option_groups
def edit(
    schedule_id: ScheduleId,
    given: Given,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Another name.")] = None,
    cron: Annotated[
        str | None, typer.Option(metavar="EXPRESSION", help=CRON_HELP, rich_help_panel=WHEN)
    ] = None,
    clear: Annotated[
        list[Clearable] | None,
        typer.Option(metavar="NAME", help=f"Remove a setting: {', '.join(Clearable)}."),
    ] = None,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """Change the given settings of a schedule and leave the rest.

    Runs that have begun keep their settings.
    """
    cleared = _cleared(clear or [], given)
    request.chosen(given)
    client = api.connect()
    before = client.get(f"/schedules/{schedule_id}")
    timezone = given.timezone or before["timezone"]
    request.check_when(cron or before["cron"], timezone)
    body = request.plain(given, timezone)
    body |= request.source_or_inbox(given, before, has_marker=Clearable.READY_MARKER not in cleared)
    body |= {key: value for key, value in (("name", name), ("cron", cron)) if value is not None}
    body |= {
        CLEARED.get(item, item.value.replace("-", "_")): None
        for item in cleared
        if item is not Clearable.READY_MARKER
    }
    sent = request.send_file(client, given)
    if not body | sent.body:
        raise typer.BadParameter("nothing is to be changed. Give an option with its new value.")
    with request.deleted_if_refused(client, sent):
        schedule = client.patch(f"/schedules/{schedule_id}", body | sent.body)
    if as_json:
        print_json(schedule)
    say(f"{safe(schedule['name'])} ({schedule['id']}) is changed.")
    window = schedule["execution_window"]
    if given.timezone and window and window["timezone"] != schedule["timezone"]:
        say(
            f"Its execution window stays on the clock of {window['timezone']}; --execution-window"
            " sets another.",
            style="yellow",
        )
    _say_next(client, schedule)


def _cleared(names: list[Clearable], given: Given) -> list[Clearable]:
    for item in names:
        if getattr(given, item.value.replace("-", "_")) is not None:
            raise typer.BadParameter(f"{item.value} is both set and cleared.", param_hint="--clear")
    return names


def _say_next(client: ApiClient, schedule: dict[str, Any]) -> None:
    """Say where its files go, when its lines are started, and its next fires.

    A key without the right to read does not see them; the schedule exists anyway.
    """
    if schedule["source_location"] is not None:
        say(f"It takes its files from {safe(schedule['source_location'])}.")
    if schedule["execution_window"] is not None:
        say(
            "It fires when it is due, and its batches start lines only in their execution window,"
            f" {windows.described(schedule['execution_window'])}."
        )
    try:
        preview = client.get(f"/schedules/{schedule['id']}/preview", count=SHOWN_FIRES)
    except ApiError as error:
        say(f"Next fires: not shown. {safe(error)}")
        return
    view.say_next(preview)
    if schedule["status"] == "paused":
        say(
            f"It is paused; `xalen-batch schedules resume {schedule['id']}` lets it fire.",
            style="yellow",
        )
