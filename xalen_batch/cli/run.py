"""`run`: submit, watch, download and invoice in one command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from xalen_batch.cli import batch_view, download, invoices, windows
from xalen_batch.cli.batch_options import (
    AUTO,
    Endpoint,
    Metadata,
    OnInvalid,
    Window,
    parse_metadata,
)
from xalen_batch.cli.batch_webhook import WebhookOptions
from xalen_batch.cli.client import ApiClient, ApiOptions
from xalen_batch.cli.failures import INTERRUPTED, NOT_SUCCESSFUL, ApiError, Failed
from xalen_batch.cli.joined import STDIN, InputFiles, is_same, joined, name_of
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import Json, Timeout, examples
from xalen_batch.cli.output import STDERR, STDOUT, print_json, say
from xalen_batch.cli.submit import before_submission, check, create
from xalen_batch.cli.watch import follow

RESULTS = ".results.jsonl"
ERRORS = ".errors.jsonl"
FORBIDDEN = 403
OUTPUT_HELP = (
    "File of the results; failed lines go to .errors.jsonl beside it. If not given: .results.jsonl"
    " beside FILE; for stdin, stdout. Several inputs need it."
)

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "xalen-batch run requests.jsonl",
        "xalen-batch run requests.jsonl -o answers.jsonl --live",
        "xalen-batch run exports/ more.jsonl.zst -o answers.jsonl",
        "xalen-batch run - -o - < requests.jsonl | jq -r .custom_id",
    )
)
@with_option_groups
def run(
    files: InputFiles,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help=OUTPUT_HELP)
    ] = None,
    endpoint: Endpoint = AUTO,
    window: Window = "24h",
    execution_window: windows.Hours = None,
    timezone: windows.Timezone = None,
    metadata: Metadata = None,
    on_invalid: OnInvalid = None,
    timeout: Timeout = None,
    *,
    hook: WebhookOptions,
    as_json: Json = False,
    api: ApiOptions,
) -> None:
    """Submit a file, watch the batch, download its results and show its invoice. Exit 3 if not
    every line succeeded.

    With `--output -`, stdout holds the results alone: the invoice goes to stderr, and `results ID
    --errors` prints the failed lines. If no line succeeds, the results of an earlier run are kept.
    """
    notes, hours = parse_metadata(metadata), windows.asked_for(execution_window, timezone, window)
    webhook = hook.asked_for()
    target = output or _target(files)
    for written in (target, errors_target(target)) if target != download.STDOUT else ():
        download.check_target(written, is_same(written, files))
    if as_json and target == download.STDOUT:
        raise typer.BadParameter(
            "with --json, stdout is taken: name a file.", param_hint="--output"
        )
    with joined(files) as source:
        with before_submission():
            client = api.connect()
            checked = check(client, source, files, endpoint, on_invalid)
        made = create(client, checked, window, hours, notes, webhook)
        batch = follow(client, made["id"], timeout)
        invoice = _delivered(client, batch, target)
    if as_json:
        print_json({"batch": batch, "invoice": invoice})
    elif invoice is not None:
        invoices.print_invoice(invoice, STDERR if target == download.STDOUT else STDOUT)
    if not batch_view.succeeded(batch):
        raise typer.Exit(NOT_SUCCESSFUL)


def _delivered(client: ApiClient, batch: dict[str, Any], target: Path) -> dict[str, Any] | None:
    """Write an ended batch's results and errors; returns its invoice.

    None if validation refused the batch.
    """
    batch_view.say_errors(batch)
    batch_view.say_outcome(batch)
    if batch["status"] == "failed":
        return None
    try:
        _deliver_results(client, batch, target)
        _deliver_errors(client, batch, target)
        return _invoice(client, batch)
    except KeyboardInterrupt:
        raise Failed(
            f"Stopped. The batch has ended; `xalen-batch results {batch['id']}` downloads it.",
            INTERRUPTED,
        ) from None


def _invoice(client: ApiClient, batch: dict[str, Any]) -> dict[str, Any] | None:
    """The invoice, or None with a message if the key may not see it: the batch succeeded anyway."""
    try:
        return client.get(f"/batches/{batch['id']}/invoice")
    except ApiError as error:
        if error.status != FORBIDDEN:
            raise
        say(f"invoice: not shown. {error}")
        return None


def _deliver_results(client: ApiClient, batch: dict[str, Any], target: Path) -> None:
    """Write the results, but keep those of an earlier run if no line succeeded."""
    if batch["request_counts"]["completed"] or target == download.STDOUT:
        download.fetch(client, batch["id"], target, errors=False, is_ended=True)
    if target == download.STDOUT:
        return
    if batch["request_counts"]["completed"]:
        say(f"results: {target}")
    else:
        say(f"results: none{f'; {target} is from an earlier run' if target.exists() else ''}")


def _deliver_errors(client: ApiClient, batch: dict[str, Any], target: Path) -> None:
    has_errors = batch_view.unsuccessful(batch) > 0
    if target == download.STDOUT:
        if has_errors:
            say(f"errors:  xalen-batch results {batch['id']} --errors")
            say(f"retry:   xalen-batch retry {batch['id']}")
        return
    beside = errors_target(target)
    # Remove the errors of an earlier run, which would look like those of this one.
    beside.unlink(missing_ok=True)
    if has_errors:
        download.fetch(client, batch["id"], beside, errors=True, is_ended=True)
        say(f"errors:  {beside}")
        say(f"retry:   xalen-batch retry {batch['id']}")


def _target(files: Sequence[Path]) -> Path:
    if len(files) > 1:
        raise typer.BadParameter(
            "with several inputs, name the file of the results.", param_hint="--output"
        )
    return default_target(files[0])


def default_target(file: Path) -> Path:
    """The result file for an input: `requests.jsonl` → `requests.results.jsonl`, stdin → stdout.

    That of a folder is beside the folder.
    """
    if file == STDIN:
        return download.STDOUT
    # The name of `.` is empty.
    beside = file.resolve() if file.is_dir() else file
    return beside.with_name(name_of(beside).removesuffix(".jsonl") + RESULTS)


def errors_target(target: Path) -> Path:
    """The error file for a result file: `x.results.jsonl` or `x.jsonl` → `x.errors.jsonl`."""
    return target.with_name(target.name.removesuffix(RESULTS).removesuffix(".jsonl") + ERRORS)
