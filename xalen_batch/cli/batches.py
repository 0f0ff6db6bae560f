"""`list`, `show`, `results`, `cancel`: batches that exist."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from xalen_batch.cli import batch_view, clock, download
from xalen_batch.cli.batch_options import check_endpoint, parse_metadata
from xalen_batch.cli.batch_view import ENDED
from xalen_batch.cli.client import ApiOptions
from xalen_batch.cli.failures import Failed
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import BatchId, Json, OfSchedule, examples
from xalen_batch.cli.output import counted, figure, print_json, print_list, say, say_more
from xalen_batch.states import BatchStatus

RESULTS_JSON = (
    "Print one list object in place of JSON Lines; with --output, what was written to the file."
)
TIME = "2026-11-01, with a time and an offset if you like, or Unix seconds"
STATUS_HELP = f"Only batches in this status: {', '.join(BatchStatus)}."

commands = typer.Typer()


@commands.command(
    "list",
    epilog=examples(
        "xalen-batch list",
        "xalen-batch list --status in_progress --limit 100",
        "xalen-batch list --metadata team=search --created-after 2026-11-01",
        "xalen-batch list --schedule sched_0192…",
        "xalen-batch list --json | jq -r .data[0].id",
    ),
)
@with_option_groups
def list_batches(
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Most batches to show.")] = 20,
    status: Annotated[BatchStatus | None, typer.Option(metavar="STATUS", help=STATUS_HELP)] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Only batches of this model.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="/v1/…", help="Only batches of this endpoint.", callback=check_endpoint
        ),
    ] = None,
    created_after: Annotated[
        str | None, typer.Option(metavar="TIME", help=f"Created at this time or later: {TIME}.")
    ] = None,
    created_before: Annotated[
        str | None, typer.Option(metavar="TIME", help="Created before this time.")
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only batches with this note; several: with all."),
    ] = None,
    schedule: OfSchedule = None,
    order: Annotated[
        Literal["desc", "asc"],
        typer.Option(metavar="desc|asc", help="`desc`: the newest first; `asc`: the oldest first."),
    ] = "desc",
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """List your batches, the newest first. Each option narrows the list."""
    notes = parse_metadata(metadata)
    filters = {
        "status": status,
        "model": model,
        "endpoint": endpoint,
        "created_after": _time(created_after, "--created-after"),
        "created_before": _time(created_before, "--created-before"),
        "schedule_id": schedule,
        **{f"metadata[{key}]": value for key, value in notes.items()},
    }
    batches, has_more = api.connect().listing(
        limit, "/batches", None, order=None if order == "desc" else order, **filters
    )
    if as_json:
        print_list(batches, has_more=has_more)
    elif batches:
        batch_view.table_of(batches)
        if has_more:
            say_more(len(batches), "oldest" if order == "asc" else "newest")
    elif schedule is not None:
        say(
            f"No batch of {schedule}{f' has the status {status}' if status else ' yet'}."
            f" `xalen-batch schedules runs {schedule}` shows every run."
        )
    elif any(filters.values()):
        say("No batch meets these conditions. `xalen-batch list` shows all.")
    else:
        say("No batches yet. `xalen-batch run FILE` makes one.")


def _time(text: str | None, option: str) -> str | None:
    """A time as the API reads it: Unix seconds, or ISO 8601."""
    if text is None or (text.isascii() and text.isdigit()):
        return text
    return clock.moment(text, option)


@commands.command(
    epilog=examples("xalen-batch show batch_0192…", "xalen-batch show batch_0192… --json")
)
@with_option_groups
def show(batch_id: BatchId, as_json: Json = False, *, api: ApiOptions) -> None:
    """Show every field of a batch, and its validation errors."""
    client = api.connect()
    batch = client.get(f"/batches/{batch_id}")
    if as_json:
        print_json(batch)
    else:
        batch_view.details(batch)


@commands.command(
    epilog=examples(
        "xalen-batch results batch_0192… -o out.jsonl",
        "xalen-batch results batch_0192… --errors",
        "xalen-batch results batch_0192… --partial | head",
        "xalen-batch results batch_0192… --merged -o all.jsonl",
        "xalen-batch results batch_0192… --json | jq -r"
        " '.data[].response.body.choices[0].message.content'",
    )
)
@with_option_groups
def results(
    batch_id: BatchId,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="The file to write, whole or not at all; `-` is stdout.",
        ),
    ] = download.STDOUT,
    errors: Annotated[
        bool,
        typer.Option("--errors", help="The lines that failed, in place of those that succeeded."),
    ] = False,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial", help="The lines that have ended so far, of a batch that still runs."
        ),
    ] = False,
    merged: Annotated[
        bool,
        typer.Option(
            "--merged",
            help="Every line once, failed ones too, with its last result among the batch and its"
            " retries; with --errors, those that failed in all of them.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help=RESULTS_JSON)] = False,
    *,
    api: ApiOptions,
) -> None:
    """Download the results of a batch: JSON Lines, in the order of the input."""
    download.check_target(output)
    client = api.connect()
    status = client.get(f"/batches/{batch_id}")["status"]
    if status not in ENDED and not partial:
        raise Failed(
            f"The batch is {status}. `xalen-batch watch {batch_id}` waits for its end; --partial"
            " reads what is there."
        )
    if status == "failed":
        raise Failed(
            f"{batch_id} failed validation, so nothing was run. `xalen-batch show {batch_id}` names"
            " the errors."
        )
    is_ended = status in ENDED
    ending = "failed" if errors else "ended" if merged else "succeeded"
    if as_json and output == download.STDOUT:
        delivered = download.print_lines(
            client, batch_id, errors=errors, is_ended=is_ended, merged=merged
        )
    else:
        delivered = download.fetch(
            client, batch_id, output, errors=errors, is_ended=is_ended, merged=merged
        )
    if as_json and output != download.STDOUT:
        print_json(
            {
                "batch_id": batch_id,
                "output": str(output),
                "lines": delivered.lines,
                "is_complete": delivered.is_complete,
            }
        )
    if not delivered.is_complete and is_ended:
        say(f"Not complete: a retry of {batch_id} still runs.", style="yellow")
    elif not delivered.is_complete:
        total = figure(int(delivered.headers["x-batch-lines-total"]))
        say(
            f"Not complete: {counted(delivered.lines, 'line')} that {ending} so far, of {total} in"
            " the batch.",
            style="yellow",
        )
    elif not delivered.lines:
        say(f"No line of {batch_id} {ending}.")


@commands.command(
    epilog=examples(
        "xalen-batch cancel batch_0192…",
        "xalen-batch cancel batch_0192… && xalen-batch watch batch_0192…",
    )
)
@with_option_groups
def cancel(batch_id: BatchId, as_json: Json = False, *, api: ApiOptions) -> None:
    """Cancel a batch. Lines that have finished are kept, delivered and billed."""
    client = api.connect()
    batch = client.post(f"/batches/{batch_id}/cancel")
    if as_json:
        print_json(batch)
    else:
        then = (
            "results {id}` downloads them."
            if batch["status"] in ENDED
            else "watch {id}` waits for the end."
        )
        say(
            f"{batch['id']} is {batch['status']}. Finished lines are kept and billed; `xalen-batch"
            f" {then.format(id=batch['id'])}"
        )
