"""`retry`, `retries`: run the lines of a batch that failed again."""

from typing import Annotated

import typer

from xalen_batch.cli import batch_view
from xalen_batch.cli.batch_options import Metadata, check_window, parse_metadata
from xalen_batch.cli.batch_webhook import WebhookOptions
from xalen_batch.cli.client import ApiOptions
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import BatchId, Json, examples
from xalen_batch.cli.output import print_json, print_line, print_list, say

CODE_HELP = (
    "Only lines that failed with this code, as the invoice names it, such as `http_503`; may be"
    " repeated. If not given: all lines that failed, expired or were cancelled."
)

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "xalen-batch retry batch_0192…",
        "xalen-batch retry batch_0192… --code batch_expired --code http_503",
        "xalen-batch retry batch_0192… --webhook https://example.com/hooks/xalen",
        "id=$(xalen-batch retry batch_0192…) && xalen-batch watch $id",
        "xalen-batch results batch_0192… --merged -o all.jsonl",
    )
)
@with_option_groups
def retry(
    batch_id: BatchId,
    code: Annotated[
        list[str] | None, typer.Option("--code", metavar="CODE", help=CODE_HELP)
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Time until it must have ended, `1h` to `7d`; if not given, as the first batch.",
            callback=check_window,
        ),
    ] = None,
    metadata: Metadata = None,
    *,
    hook: WebhookOptions,
    as_json: Json = False,
    api: ApiOptions,
) -> None:
    """Make a batch of the lines of an ended batch that failed, and print the new batch's id.

    It is billed by itself, at the prices of today. Each line is retried once: retry the new batch
    for lines that fail again. Metadata is that of the first batch, if none is given.
    """
    asked = {
        "codes": code or None,
        "completion_window": window,
        "metadata": parse_metadata(metadata) or None,
        "webhook": hook.asked_for(),
    }
    body = {name: value for name, value in asked.items() if value is not None}
    batch = api.connect().post(f"/batches/{batch_id}/retry", body)
    say(
        f"{batch['id']} runs the lines of {batch_id} again that ended with"
        f" {', '.join(batch['retry_codes'])}. `xalen-batch results {batch_id} --merged` reads the"
        " results of both."
    )
    if as_json:
        print_json(batch)
    else:
        print_line(batch["id"])


@commands.command(
    epilog=examples("xalen-batch retries batch_0192…", "xalen-batch retries batch_0192… --json")
)
@with_option_groups
def retries(batch_id: BatchId, as_json: Json = False, *, api: ApiOptions) -> None:
    """List the retries of a batch and of its retries, the oldest first."""
    found = api.connect().get(f"/batches/{batch_id}/retries")
    if as_json:
        print_list(found["data"])
    elif found["data"]:
        batch_view.table_of(found["data"])
    else:
        say(f"{batch_id} was not retried. `xalen-batch retry {batch_id}` runs what failed again.")
