"""`watch`: follow a batch to its end."""

import time
from typing import Any

import typer

from xalen_batch.cli import outlook, progress, waits
from xalen_batch.cli.batch_view import ENDED, say_errors, say_outcome, succeeded
from xalen_batch.cli.client import ApiClient, ApiOptions
from xalen_batch.cli.failures import INTERRUPTED, NOT_SUCCESSFUL, TIMED_OUT, Failed
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import BatchId, Json, Timeout, examples
from xalen_batch.cli.output import print_json, say

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 2.0

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
        say(f"`xalen-batch results {batch_id} --errors` prints the lines that did not.")
    if as_json:
        print_json(batch)
    if not succeeded(batch):
        raise typer.Exit(NOT_SUCCESSFUL)


def follow(client: ApiClient, batch_id: str, timeout: float | None) -> dict[str, Any]:
    """The batch at its end.

    Failed (exit 5, 130) on a timeout or Ctrl-C; the batch goes on either way.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = FIRST_PAUSE
    told, risks = waits.WaitReporter(), outlook.RiskReporter()
    try:
        # Before the progress bar, which would stay above the error of an unknown batch.
        batch = client.get(f"/batches/{batch_id}")
        with progress.batch() as view:
            while True:
                view.update(batch)
                if batch["status"] in ENDED:
                    return batch
                told.update(batch)
                risks.update(batch)
                if deadline is not None and time.monotonic() + pause > deadline:
                    raise Failed(
                        f"Waited {timeout:g} s. The batch goes on; `xalen-batch watch {batch_id}`"
                        " waits again.",
                        TIMED_OUT,
                    )
                time.sleep(pause)
                pause = min(pause * 1.1, LONGEST_PAUSE)
                batch = client.get(f"/batches/{batch_id}")
    except KeyboardInterrupt:
        raise Failed(
            f"No longer watching. The batch goes on; `xalen-batch watch {batch_id}` resumes.",
            INTERRUPTED,
        ) from None
