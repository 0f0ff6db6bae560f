"""`schedules pause`, `resume`, `delete`."""

from contextlib import suppress
from typing import Annotated, Any

import typer

from xalen_batch.cli import clock
from xalen_batch.cli.client import ApiClient, ApiOptions
from xalen_batch.cli.failures import Failed
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import Json, ScheduleId, examples
from xalen_batch.cli.output import counted, print_json, say
from xalen_batch.cli.schedules import view

commands = typer.Typer()


@commands.command(
    epilog=examples('xalen-batch schedules pause sched_0192… --note "prices are wrong, asked Jo"')
)
@with_option_groups
def pause(
    schedule_id: ScheduleId,
    note: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The reason; shown with the schedule.")
    ] = None,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """Pause a schedule: it does not fire until it is resumed, and fires meanwhile are not made up
    for.
    """
    client = api.connect()
    schedule = client.post(f"/schedules/{schedule_id}/pause", {"note": note})
    if as_json:
        print_json(schedule)
    if _is_over(client, schedule):
        say(
            f"{view.name_of(schedule)} is {schedule['status']}."
            f" {view.HAS_ENDED.format(id=schedule_id)}",
            style="yellow",
        )
    else:
        say(
            f"{view.name_of(schedule)} is {schedule['status']}; `xalen-batch schedules resume"
            f" {schedule_id}` lets it fire again."
        )


def _is_over(client: ApiClient, schedule: dict[str, Any]) -> bool:
    """Whether no fire is left before its end, so that resuming it has no effect.

    False if this key may not see its fires.
    """
    if schedule["ends_at"] is not None:
        with suppress(Failed):
            return not client.get(f"/schedules/{schedule['id']}/preview", count=1)["fires"]
    return False


@commands.command(epilog=examples("xalen-batch schedules resume sched_0192…"))
@with_option_groups
def resume(schedule_id: ScheduleId, as_json: Json = False, *, api: ApiOptions) -> None:
    """Resume a paused schedule from its next time on.

    Earlier failures no longer count for --pause-on-failure.
    """
    schedule = api.connect().post(f"/schedules/{schedule_id}/resume")
    if as_json:
        print_json(schedule)
    if schedule["status"] == "ended":
        say(
            f"{view.name_of(schedule)} does not fire. {view.HAS_ENDED.format(id=schedule_id)}",
            style="yellow",
        )
        return
    fires = (
        f", and fires next {clock.local(schedule['next_fire_local'])}"
        f" ({clock.utc(schedule['next_fire_at'])})"
    )
    say(
        f"{view.name_of(schedule)} is"
        f" {schedule['status']}{fires if schedule['next_fire_at'] else ''}."
    )


@commands.command(
    epilog=examples(
        "xalen-batch schedules delete sched_0192…",
        "xalen-batch schedules delete sched_0192… --discard-requests",
    )
)
@with_option_groups
def delete(
    schedule_id: ScheduleId,
    discard_requests: Annotated[
        bool,
        typer.Option(
            "--discard-requests",
            help="Delete it although requests wait in its inbox; they are lost.",
        ),
    ] = False,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """Delete a schedule. Its runs, batches and invoices stay."""
    client = api.connect()
    deleted = client.delete(
        f"/schedules/{schedule_id}", discard_requests="true" if discard_requests else None
    )
    if as_json:
        print_json(deleted)
    lost = counted(deleted["discarded_requests"], "request")
    say(
        f"{schedule_id} is"
        f" deleted{f', and {lost} with it' if deleted['discarded_requests'] else ''}. Its runs and"
        " batches stay."
    )
