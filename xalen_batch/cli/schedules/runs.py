"""`schedules runs`, `run`, `backfill`: what became of every time a schedule fired, and runs beside them."""

import time
from typing import Annotated, Any

import typer

from xalen_batch.cli import clock
from xalen_batch.cli.batch_view import say_errors, say_outcome, succeeded
from xalen_batch.cli.client import PAGE, Client, connect
from xalen_batch.cli.failures import INTERRUPTED, NOT_SUCCESSFUL, TIMED_OUT, Failed
from xalen_batch.cli.options import ApiKey, BaseUrl, Json, Live, ScheduleId, Timeout, examples
from xalen_batch.cli.output import counted, print_json, safe, say
from xalen_batch.cli.schedules import view
from xalen_batch.cli.watch import follow
from xalen_batch.states import RunState

STATE_HELP = f"Only runs in this state: {', '.join(RunState)}."
WAIT_HELP = "Watch its batch to the end, as `watch` does: exit 3 if it did not fully succeed."
LOOK_EVERY = 1.0

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "xalen-batch schedules runs sched_0192…",
        "xalen-batch schedules runs sched_0192… --state missed",
        "xalen-batch schedules runs sched_0192… --json | jq -r '.data[].batch_id'",
    )
)
def runs(
    schedule_id: ScheduleId,
    limit: Annotated[int, typer.Option(min=1, help="Most runs to show, the newest first.")] = 20,
    state: Annotated[RunState | None, typer.Option(metavar="STATE", help=STATE_HELP)] = None,
    as_json: Json = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    live: Live = False,
) -> None:
    """List what became of every time it fired, and why; of a deleted schedule too."""
    found = connect(base_url, api_key, live).first(limit, f"/schedules/{schedule_id}/runs", state=state)
    if as_json:
        print_json({"object": "list", "data": found})
    elif found:
        view.runs_of(found)
    else:
        say("No runs yet. `xalen-batch schedules preview ID` shows when it fires." if state is None else f"No run is {state}.")


@commands.command(
    epilog=examples(
        "xalen-batch schedules run sched_0192…",
        "xalen-batch schedules run sched_0192… --wait --timeout 600",
        "id=$(xalen-batch schedules run sched_0192… --wait) && xalen-batch results $id -o out.jsonl",
    )
)
def run(
    schedule_id: ScheduleId,
    wait: Annotated[bool, typer.Option("--wait", help=WAIT_HELP)] = False,
    timeout: Timeout = None,
    as_json: Json = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    live: Live = False,
) -> None:
    """Run it now and print the batch's id; when it fires next stays as it is. With --wait --json: the run and its batch."""
    client = connect(base_url, api_key, live)
    started = client.post(f"/schedules/{schedule_id}/run")
    deadline = None if timeout is None else time.monotonic() + timeout
    if wait:
        started = _once_begun(client, started, deadline)
    if started["state"] == "failed" and started["batch_id"] is None:
        raise Failed(f"{started['id']} could not begin: {started['message']}")
    if started["batch_id"] and not as_json:
        typer.echo(started["batch_id"])
    _say_state(started)
    batch = _followed(client, started, deadline) if wait else None
    if as_json:
        print_json({"run": started, "batch": batch} if wait else started)
    if batch is not None and not succeeded(batch):
        raise typer.Exit(NOT_SUCCESSFUL)


def _say_state(started: dict[str, Any]) -> None:
    words = f": {safe(started['message'])}" if started["message"] else "."
    say(f"{started['id']} is {started['state']}{words}")
    if started["state"] == "waiting":
        say(f"`xalen-batch schedules runs {started['schedule_id']}` shows when it has begun.")


def _once_begun(client: Client, started: dict[str, Any], deadline: float | None) -> dict[str, Any]:
    """The run when it waits no longer for the run before it or for its source."""
    if started["state"] == "waiting":
        _say_state(started)
    try:
        while started["state"] == "waiting":
            if deadline is not None and time.monotonic() + LOOK_EVERY > deadline:
                raise Failed(f"The time to wait is over; {started['id']} still waits, and begins without you.", TIMED_OUT)
            time.sleep(LOOK_EVERY)
            latest = client.get(f"/schedules/{started['schedule_id']}/runs", limit=PAGE)["data"]
            started = next((each for each in latest if each["id"] == started["id"]), started)
    except KeyboardInterrupt:
        raise Failed(f"No longer watching. {started['id']} begins without you.", INTERRUPTED) from None
    return started


def _followed(client: Client, started: dict[str, Any], deadline: float | None) -> dict[str, Any] | None:
    """Its batch at its end, which has been told; None if it has none."""
    if started["batch_id"] is None:
        return None
    batch = follow(client, started["batch_id"], None if deadline is None else max(deadline - time.monotonic(), 0))
    say_errors(batch)
    say_outcome(batch)
    return batch


@commands.command(
    epilog=examples(
        "xalen-batch schedules backfill sched_0192… --from 2026-11-01 --to 2026-11-08",
        "xalen-batch schedules backfill sched_0192… --from 2026-11-01T18:00 --to 2026-11-02T06:00",
    )
)
def backfill(
    schedule_id: ScheduleId,
    start: Annotated[str, typer.Option("--from", metavar="TIME", help="The first time; a date is its midnight on the schedule's clock.")],
    end: Annotated[str, typer.Option("--to", metavar="TIME", help="The end, which itself is not run: a date leaves out that day.")],
    as_json: Json = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    live: Live = False,
) -> None:
    """Run the past times that never ran, were missed or skipped, one after another; those that have run are left alone."""
    body = {"from": clock.moment(start, "--from"), "to": clock.moment(end, "--to")}
    made = connect(base_url, api_key, live).post(f"/schedules/{schedule_id}/backfill", body)["data"]
    if as_json:
        print_json({"object": "list", "data": made})
    elif made:
        view.runs_of(made)
    if made:
        say(f"{counted(len(made), 'run')}. `xalen-batch schedules runs {schedule_id}` shows how they go on.")
    else:
        say("Nothing to make up for: every time of then has run, or is to run.")
