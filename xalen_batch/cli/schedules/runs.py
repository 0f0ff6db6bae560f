"""`schedules runs`, `run`, `backfill`: the runs of a schedule, and runs outside its times."""

import time
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any

import typer

from xalen_batch.cli import clock
from xalen_batch.cli.batch_view import say_errors, say_outcome, succeeded
from xalen_batch.cli.client import PAGE, ApiClient, ApiOptions
from xalen_batch.cli.failures import INTERRUPTED, NOT_SUCCESSFUL, TIMED_OUT, Failed
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import Json, ScheduleId, Timeout, examples
from xalen_batch.cli.output import (
    counted,
    figure,
    print_json,
    print_line,
    print_list,
    safe,
    say,
    say_more,
)
from xalen_batch.cli.schedules import view
from xalen_batch.cli.watch import follow
from xalen_batch.states import RunState

STATE_HELP = f"Only runs in this state: {', '.join(RunState)}."
WAIT_HELP = "Follow its batch to the end: exit 3 if a line did not succeed or the run was skipped."
FOR_HELP = (
    "Fill in the dates of this time, on the schedule's clock: 2026-11-20T02:30 repeats that night."
)
# The most failed runs that are read to count those of a time range.
MOST_COUNTED = 500
LOOK_EVERY = 1.0

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "xalen-batch schedules runs sched_0192…",
        "xalen-batch schedules runs sched_0192… --state missed",
        "xalen-batch schedules runs sched_0192… --json | jq -r '.data[].batch_id'",
    )
)
@with_option_groups
def runs(
    schedule_id: ScheduleId,
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most runs to show, the newest first.")
    ] = 20,
    state: Annotated[RunState | None, typer.Option(metavar="STATE", help=STATE_HELP)] = None,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """List the runs of a schedule, also of a deleted one: when each fired, its state, and why."""
    found, has_more = api.connect().listing(limit, f"/schedules/{schedule_id}/runs", state=state)
    if as_json:
        print_list(found, has_more=has_more)
    elif found:
        view.runs_of(found)
        if has_more:
            say_more(len(found))
    else:
        say(
            f"No runs yet. `xalen-batch schedules preview {schedule_id}` shows when it fires."
            if state is None
            else f"No run has the state {state}."
        )


@commands.command(
    epilog=examples(
        "xalen-batch schedules run sched_0192…",
        "xalen-batch schedules run sched_0192… --wait --timeout 600",
        "xalen-batch schedules run sched_0192… --for 2026-11-20T02:30",
        "id=$(xalen-batch schedules run sched_0192… --wait) && xalen-batch results $id -o"
        " out.jsonl",
    )
)
@with_option_groups
def run(
    schedule_id: ScheduleId,
    time_for: Annotated[str | None, typer.Option("--for", metavar="TIME", help=FOR_HELP)] = None,
    wait: Annotated[bool, typer.Option("--wait", help=WAIT_HELP)] = False,
    timeout: Timeout = None,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """Run a schedule now and print the batch's id. When it fires next stays as it is.

    With --wait --json, the run and its batch are printed when the batch has ended.
    """
    body = None if time_for is None else {"as_of": clock.moment(time_for, "--for")}
    client = api.connect()
    started = client.post(f"/schedules/{schedule_id}/run", body)
    deadline = None if timeout is None else time.monotonic() + timeout
    if wait:
        started = _once_begun(client, started, deadline)
    if started["state"] == "failed" and started["batch_id"] is None:
        raise Failed(f"{started['id']} could not begin: {view.words_of(started)}")
    if started["batch_id"] and not as_json:
        print_line(started["batch_id"])
    _say_state(started)
    batch = _followed(client, started, deadline) if wait else None
    if as_json:
        print_json({"run": started, "batch": batch} if wait else started)
    if wait and started["state"] == "skipped":
        say(f"{started['id']} was skipped, so there is no batch to wait for.", style="yellow")
        raise typer.Exit(NOT_SUCCESSFUL)
    if batch is not None and not succeeded(batch):
        raise typer.Exit(NOT_SUCCESSFUL)


def _say_state(started: dict[str, Any]) -> None:
    dates = (
        f", with the dates of {clock.at(started['as_of'], started['timezone'])}"
        if started["as_of"]
        else ""
    )
    words = f": {safe(view.words_of(started))}" if started["message"] else "."
    say(f"{started['id']} is {started['state']}{dates}{words}")
    if started["state"] == "waiting":
        say(f"`xalen-batch schedules runs {started['schedule_id']}` shows when it has begun.")


def _once_begun(
    client: ApiClient, started: dict[str, Any], deadline: float | None
) -> dict[str, Any]:
    """The run when it no longer waits for the run before it or for its source."""
    if started["state"] == "waiting":
        _say_state(started)
    try:
        while started["state"] == "waiting":
            if deadline is not None and time.monotonic() + LOOK_EVERY > deadline:
                raise Failed(
                    f"The time to wait is over; {started['id']} still waits, and begins without"
                    " you.",
                    TIMED_OUT,
                )
            time.sleep(LOOK_EVERY)
            latest = client.get(f"/schedules/{started['schedule_id']}/runs", limit=PAGE)["data"]
            started = next((each for each in latest if each["id"] == started["id"]), started)
    except KeyboardInterrupt:
        raise Failed(
            f"No longer watching. {started['id']} begins without you.", INTERRUPTED
        ) from None
    return started


def _followed(
    client: ApiClient, started: dict[str, Any], deadline: float | None
) -> dict[str, Any] | None:
    """The batch of a run at its end, with its outcome on stderr; None if the run has none."""
    if started["batch_id"] is None:
        return None
    batch = follow(
        client,
        started["batch_id"],
        None if deadline is None else max(deadline - time.monotonic(), 0),
    )
    say_errors(batch)
    say_outcome(batch)
    return batch


@commands.command(
    epilog=examples(
        "xalen-batch schedules backfill sched_0192… --from 2026-11-01 --to 2026-11-08",
        "xalen-batch schedules backfill sched_0192… --from 2026-11-01T18:00 --to 2026-11-02T06:00",
    )
)
@with_option_groups
def backfill(
    schedule_id: ScheduleId,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="TIME",
            help="The first time; a date is its midnight on the schedule's clock.",
        ),
    ],
    end: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="TIME",
            help="The end, which is not run itself: a date leaves out that day.",
        ),
    ],
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """Run the past times of a schedule that never ran, were missed or skipped, one after another.

    Times that have run are left out.
    """
    body = {"from": clock.moment(start, "--from"), "to": clock.moment(end, "--to")}
    _check_order(body["from"], body["to"])
    client = api.connect()
    made = client.post(f"/schedules/{schedule_id}/backfill", body)["data"]
    if as_json:
        print_list(made)
    elif made and made[0]["scheduled_for"] is not None:
        # Null if the key may not read it.
        view.runs_of(made)
    if made:
        say(
            f"{counted(len(made), 'run')}. `xalen-batch schedules runs {schedule_id}` shows how"
            " they go on."
        )
    else:
        say(
            f"There is nothing left to run: every time between {body['from']} and {body['to']} has"
            " run already, or is about to."
        )
        _say_failed(client, schedule_id, body["from"], body["to"])


def _check_order(start: str, end: str) -> None:
    first, last = datetime.fromisoformat(start), datetime.fromisoformat(end)
    # One has an offset, the other not: only the server knows the schedule's clock.
    if (first.tzinfo is None) == (last.tzinfo is None) and first >= last:
        problem = (
            f"{start} is the same as --to" if first == last else f"{start} is after --to, {end}"
        )
        raise typer.BadParameter(
            f"{problem}. Give the earlier time first; --to itself is not run.", param_hint="--from"
        )


def _say_failed(client: ApiClient, schedule_id: str, start: str, end: str) -> None:
    """Say how many runs in a time range failed, and how to run one again.

    Counts the runs that the key may see.
    """
    found, time = list[dict[str, Any]](), "TIME"
    with suppress(Failed):
        found = [
            run
            for run in client.listing(
                MOST_COUNTED, f"/schedules/{schedule_id}/runs", state="failed"
            ).data
            if run["trigger"] != "manual" and _is_between(run, start, end)
        ]
    if found:
        is_one, time = len(found) == 1, min(run["scheduled_local"] for run in found)
        say(f"{'One' if is_one else figure(len(found))} of these runs failed.", style="yellow")
    say(f"`xalen-batch schedules run {schedule_id} --for {time}` runs one of them again.")


def _is_between(run: dict[str, Any], start: str, end: str) -> bool:
    """Whether a run's instant is in [start, end); times without an offset are on its clock."""
    instant = datetime.fromisoformat(run["scheduled_local"])
    first, last = (datetime.fromisoformat(time) for time in (start, end))
    here = instant.replace(tzinfo=None)
    return (here if first.tzinfo is None else instant) >= first and (
        here if last.tzinfo is None else instant
    ) < last
