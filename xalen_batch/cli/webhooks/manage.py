"""`webhooks create`, `list`, `show`, `update`, `rotate`, `delete`."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from xalen_batch.cli import clock
from xalen_batch.cli.client import ApiOptions
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import print_json, print_list, say
from xalen_batch.cli.webhooks import view
from xalen_batch.cli.webhooks.view import WebhookId

commands = typer.Typer()
# An account may have more than the default quota of 20.
MOST = 1_000
ALL = "all"

Types = Annotated[
    str | None,
    typer.Option(
        metavar="TYPES",
        help=(
            "Comma-separated types of events: batch.completed, batch.failed, … (docs/webhooks.md),"
            " or `all`."
        ),
    ),
]
Note = Annotated[str | None, typer.Option(metavar="TEXT", help="A note for you.")]


class Switch(StrEnum):
    ON = "on"
    OFF = "off"


@commands.command(
    epilog=examples(
        "xalen-batch webhooks create https://example.com/hooks",
        "xalen-batch webhooks create https://example.com/hooks --events batch.completed",
        "xalen-batch webhooks create https://example.com/hooks --json | jq -r .secret",
    )
)
@with_option_groups
def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where events are posted, https.")],
    events: Types = None,
    description: Note = None,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """Post your account's events to a URL. The secret that signs them is printed now and never
    again.

    The key needs the scope `admin`: `xalen-batch keys create --scopes`.
    """
    body = {"url": url, "events": _types(events), "description": description}
    view.print_secret(api.connect().post("/webhooks", body), as_json)


@commands.command(
    "list", epilog=examples("xalen-batch webhooks list", "xalen-batch webhooks list --json")
)
@with_option_groups
def list_webhooks(
    batch: Annotated[
        str | None, typer.Option(metavar="ID", help="Only the webhook of this batch, `batch_…`.")
    ] = None,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """List your webhooks; never a secret."""
    found = api.connect().listing(MOST, "/webhooks", batch_id=batch)
    if as_json:
        print_list(found.data, has_more=found.has_more)
    elif found.data:
        view.print_webhooks(found.data)
    else:
        say("No webhooks yet. `xalen-batch webhooks create URL` makes one.")


@commands.command(
    epilog=examples(
        "xalen-batch webhooks show whe_0192…", "xalen-batch webhooks show whe_0192… --json"
    )
)
@with_option_groups
def show(webhook_id: WebhookId, as_json: Json = False, *, api: ApiOptions) -> None:
    """Show a webhook and its last attempt."""
    found = api.connect().get(f"/webhooks/{webhook_id}")
    if as_json:
        print_json(found)
    else:
        view.print_webhook(found)


@commands.command(
    epilog=examples(
        "xalen-batch webhooks update whe_0192… --url https://example.com/other",
        "xalen-batch webhooks update whe_0192… --events all",
        "xalen-batch webhooks update whe_0192… --enabled on",
    )
)
@with_option_groups
def update(
    webhook_id: WebhookId,
    url: Annotated[str | None, typer.Option(metavar="URL", help="Where events go now.")] = None,
    events: Types = None,
    description: Note = None,
    enabled: Annotated[
        Switch | None, typer.Option(help="`off`: it gets no events. `on` forgets its failures.")
    ] = None,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """Change a webhook, or enable it again after its receiver failed."""
    changes: dict[str, Any] = {
        name: value
        for name, value in (
            ("url", url),
            ("description", description),
            ("enabled", None if enabled is None else enabled is Switch.ON),
        )
        if value is not None
    }
    if events is not None:
        changes["events"] = _types(events)
    if not changes:
        raise typer.BadParameter(
            "Nothing to change. Give --url, --events, --description or --enabled."
        )
    changed = api.connect().patch(f"/webhooks/{webhook_id}", changes)
    if as_json:
        print_json(changed)
    else:
        say(f"{webhook_id} is changed: it is {changed['status']}.")


@commands.command(
    epilog=examples(
        "xalen-batch webhooks rotate whe_0192…", "xalen-batch webhooks rotate whe_0192… --overlap 0"
    )
)
@with_option_groups
def rotate(
    webhook_id: WebhookId,
    overlap: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="How long the old secret signs as well: `30m`, `24h`, `7d`, or `0`; at most 7d.",
        ),
    ] = "24h",
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """Make a new secret, which is printed now and never again.

    Until the overlap is over, each delivery has two signatures.
    """
    seconds = int(clock.duration(overlap, "--overlap").total_seconds())
    rotated = api.connect().post(f"/webhooks/{webhook_id}/rotate", {"overlap_seconds": seconds})
    view.print_secret(rotated, as_json)


@commands.command(
    epilog=examples(
        "xalen-batch webhooks delete whe_0192…", "xalen-batch webhooks delete whe_0192… --json"
    )
)
@with_option_groups
def delete(webhook_id: WebhookId, as_json: Json = False, *, api: ApiOptions) -> None:
    """Delete a webhook. What waits for it is not sent."""
    deleted = api.connect().delete(f"/webhooks/{webhook_id}")
    if as_json:
        print_json(deleted)
    else:
        say(f"{webhook_id} is deleted.")


def _types(text: str | None) -> list[str] | None:
    if text is None or text == ALL:
        return None
    return [part.strip() for part in text.split(",") if part.strip()]
