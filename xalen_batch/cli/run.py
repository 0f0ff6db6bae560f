"""`run`: from a file to its results and its invoice, in one go."""

from pathlib import Path
from typing import Annotated, Any

import typer

from xalen_batch.cli import batch_view, download, inputs, invoices
from xalen_batch.cli.client import Client, connect
from xalen_batch.cli.failures import INTERRUPTED, NOT_SUCCESSFUL, Failed
from xalen_batch.cli.options import ApiKey, BaseUrl, Json, Live, Timeout, examples
from xalen_batch.cli.output import STDERR, STDOUT, print_json, say
from xalen_batch.cli.submit import Metadata, Window, check, create, parse_metadata
from xalen_batch.cli.watch import follow

RESULTS = ".results.jsonl"
ERRORS = ".errors.jsonl"
OUTPUT_HELP = "Where the results go; `-` is stdout. If not given: FILE with .results.jsonl."

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "xalen-batch run requests.jsonl",
        "xalen-batch run requests.jsonl -o answers.jsonl --live",
        "xalen-batch run - -o - < requests.jsonl | jq -r .custom_id",
    )
)
def run(
    file: inputs.InputFile,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="OUT", help=OUTPUT_HELP)] = None,
    endpoint: inputs.Endpoint = inputs.AUTO,
    window: Window = "24h",
    metadata: Metadata = None,
    timeout: Timeout = None,
    as_json: Json = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    live: Live = False,
) -> None:
    """Submit a file, watch it, download its results and show its invoice. Exit 3 if not every line succeeded."""
    notes, target = parse_metadata(metadata), output or default_target(file)
    download.check_target(target, file)
    if as_json and target == download.STDOUT:
        raise typer.BadParameter("with --json, stdout is taken: name a file.", param_hint="--output")
    with inputs.opened(file) as path:
        checked = check(path, inputs.name_of(file), endpoint)
        client = connect(base_url, api_key, live)
        batch = follow(client, create(client, checked, window, notes)["id"], timeout)
        invoice = _delivered(client, batch, target)
    if as_json:
        print_json({"batch": batch, "invoice": invoice})
    elif invoice is not None:
        invoices.print_invoice(invoice, STDERR if target == download.STDOUT else STDOUT)
    if not batch_view.succeeded(batch):
        raise typer.Exit(NOT_SUCCESSFUL)


def _delivered(client: Client, batch: dict[str, Any], target: Path) -> dict[str, Any] | None:
    """Write an ended batch's results, and its errors beside them. Its invoice; None if validation refused it."""
    batch_view.say_errors(batch)
    batch_view.say_outcome(batch)
    if batch["status"] == "failed":
        return None
    try:
        download.fetch(client, batch["id"], target, errors=False, is_ended=True)
        _deliver_errors(client, batch, target)
        return client.get(f"/batches/{batch['id']}/invoice")
    except KeyboardInterrupt:
        raise Failed(f"Stopped. The batch has ended; `xalen-batch results {batch['id']}` downloads it.", INTERRUPTED) from None


def _deliver_errors(client: Client, batch: dict[str, Any], target: Path) -> None:
    has_errors = batch["request_counts"]["failed"] > 0
    if target == download.STDOUT:
        if has_errors:
            say(f"errors:  xalen-batch results {batch['id']} --errors")
        return
    say(f"results: {target}")
    if has_errors:
        beside = errors_target(target)
        download.fetch(client, batch["id"], beside, errors=True, is_ended=True)
        say(f"errors:  {beside}")


def default_target(file: Path) -> Path:
    """`requests.jsonl` → `requests.results.jsonl` beside it; stdin → stdout."""
    return download.STDOUT if file == inputs.STDIN else file.with_name(file.name.removesuffix(".jsonl") + RESULTS)


def errors_target(target: Path) -> Path:
    """`x.results.jsonl` or `x.jsonl` → `x.errors.jsonl`."""
    return target.with_name(target.name.removesuffix(RESULTS).removesuffix(".jsonl") + ERRORS)
