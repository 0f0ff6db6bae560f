"""`watch`: follow a batch to its end."""

from typing import Any

import typer

from xalen_batch.cli import outlook, progress, waits
from xalen_batch.cli.batch_view import say_errors, say_outcome, succeeded
from xalen_batch.cli.client import ApiClient, ApiOptions
from xalen_batch.cli.failures import INTERRUPTED, NOT_SUCCESSFUL, Failed
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import BatchId, Json, Timeout, examples
from xalen_batch.cli.output import print_json, say
from xalen_batch.cli.states import States

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "xalen-batch watch batch_0192…",
        "xalen-batch watch batch_0192… --timeout 600 && xalen-batch results batch_0192… -o"
        " out.jsonl",
    )
)
@with_option_groups
def watch(
    batch_id: BatchId,
    timeout: Timeout = None,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """Follow a batch until it ends.

    Exit 3 if it did not fully succeed, 5 if the time to wait was over first.
    """
    client = api.connect()
    batch = follow(client, batch_id, timeout)
    say_errors(batch)
    say_outcome(batch)
    if batch["status"] != "failed" and batch["request_counts"]["failed"]:
        say(
            f"`xalen-batch results {batch_id} --errors` prints the failed lines, and"
            f" `xalen-batch retry {batch_id}` runs them again."
        )
    if as_json:
        print_json(batch)
    if not succeeded(batch):
        raise typer.Exit(NOT_SUCCESSFUL)


def follow(client: ApiClient, batch_id: str, timeout: float | None) -> dict[str, Any]:
    """The batch at its end.

    Failed (exit 5, 130) on a timeout or Ctrl-C; the batch goes on either way.
    """
    told, risks = waits.WaitReporter(), outlook.RiskReporter()
    try:
        found = iter(States(client, batch_id, timeout))
        # Before the progress bar, which would stay above the error of an unknown batch.
        batch = next(found)
        with progress.batch() as view:
            view.update(batch)
            told.update(batch)
            risks.update(batch)
            for batch in found:
                view.update(batch)
                told.update(batch)
                risks.update(batch)
            return batch
    except KeyboardInterrupt:
        raise Failed(
            f"No longer watching. The batch goes on; `xalen-batch watch {batch_id}` resumes.",
            INTERRUPTED,
        ) from None
