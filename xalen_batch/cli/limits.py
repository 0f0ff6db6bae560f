"""`limits`: an account's quotas, with the used and the free part of each."""

from typing import Any

import typer

from xalen_batch.cli.client import ApiOptions
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import figure, grid, print_json, show

NAMES = {
    "open_batches": "open batches",
    "enqueued_lines": "lines in them",
    "enqueued_tokens": "input tokens in them",
    "files": "files",
    "storage_bytes": "bytes in files, pending uploads and inboxes",
    "pending_uploads": "pending uploads",
    "schedules": "schedules",
    "waiting_runs": "runs that wait to start",
    "inbox_requests": "requests in inboxes",
    "api_keys": "API keys",
    "webhooks": "webhooks",
    "idempotency_keys": "idempotency keys",
    "requests_per_second": "requests per second",
    "changes_per_minute": "changes per minute",
}
COLUMNS = ("limit of", "used", "limit", "free")

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "xalen-batch limits",
        "xalen-batch limits --live",
        "xalen-batch limits --json | jq .open_batches.free",
    )
)
@with_option_groups
def limits(as_json: Json = False, *, api: ApiOptions) -> None:
    """Show your account's quotas: used, limit and free."""
    found = api.connect().get("/limits")
    if as_json:
        print_json(found)
    else:
        print_limits(found)


def print_limits(found: dict[str, Any]) -> None:
    rows = [
        (words, *(_cell(found[name][column]) for column in COLUMNS[1:]))
        for name, words in NAMES.items()
        if name in found
    ]
    show(grid(COLUMNS, rows, right=COLUMNS[1:]))


def _cell(number: int | None) -> str:
    return "none" if number is None else figure(number)
