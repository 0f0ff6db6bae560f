"""`webhooks test`, `deliveries`, `redeliver`, `replay`."""

import time
from enum import StrEnum
from typing import Annotated, Any

import typer

from xalen_batch.cli import clock
from xalen_batch.cli.client import ApiClient, ApiOptions
from xalen_batch.cli.failures import ERROR, TIMED_OUT, Failed
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import counted, print_json, print_list, say, say_more
from xalen_batch.cli.webhooks import view
from xalen_batch.cli.webhooks.view import WebhookId

commands = typer.Typer()
# Seconds for which `test` waits: an attempt takes at most 15.
PATIENCE = 30.0
PAUSE = 0.25


class State(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class Replayed(StrEnum):
    FAILED = "failed"
    ALL = "all"


@commands.command(
    "test",
    epilog=examples(
        "xalen-batch webhooks test whe_0192…", "xalen-batch webhooks test whe_0192… --json"
    ),
)
@with_option_groups
def send_test(webhook_id: WebhookId, as_json: Json = False, *, api: ApiOptions) -> None:
    """Send a test event, and show the receiver's answer.

    Exit 1 if the attempt failed, 5 if none was made in time.
    """
    client = api.connect()
    delivery = client.post(f"/webhooks/{webhook_id}/test")
    delivery = _attempted(client, webhook_id, str(delivery["id"]))
    if as_json:
        print_json(delivery)
    is_delivered = delivery["state"] == State.DELIVERED
    say(view.outcome(delivery), style=None if is_delivered else "red")
    if not is_delivered:
        raise typer.Exit(ERROR)


def _attempted(client: ApiClient, webhook_id: str, event_id: str) -> dict[str, Any]:
    """A delivery once it has been attempted. Failed (exit 5) if that takes too long."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = client.get(f"/webhooks/{webhook_id}/deliveries", limit=100)["data"]
        for delivery in found:
            if delivery["id"] == event_id and delivery["attempts"]:
                return dict(delivery)
        time.sleep(PAUSE)
    raise Failed(
        f"No attempt within {PATIENCE:.0f} s. `xalen-batch webhooks deliveries {webhook_id}` shows"
        " it later; is a worker running?",
        TIMED_OUT,
    )


@commands.command(
    epilog=examples(
        "xalen-batch webhooks deliveries whe_0192…",
        "xalen-batch webhooks deliveries whe_0192… --state failed --json",
    )
)
@with_option_groups
def deliveries(
    webhook_id: WebhookId,
    state: Annotated[
        State | None, typer.Option(help="Only those that are `pending`, `delivered` or `failed`.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many to show.")] = 20,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """List a webhook's deliveries, the newest event first, each with its last attempt."""
    found = api.connect().listing(limit, f"/webhooks/{webhook_id}/deliveries", state=state)
    if as_json:
        print_list(found.data, has_more=found.has_more)
        return
    if not found.data:
        say("No deliveries. `xalen-batch webhooks test` sends one.")
        return
    view.print_deliveries(found.data)
    if found.has_more:
        say_more(limit)


@commands.command(epilog=examples("xalen-batch webhooks redeliver whe_0192… evt_0192…"))
@with_option_groups
def redeliver(
    webhook_id: WebhookId,
    event_id: Annotated[str, typer.Argument(metavar="EVENT", help="The event, `evt_…`.")],
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """Send an event to a webhook again, with all attempts anew."""
    sent = api.connect().post(f"/webhooks/{webhook_id}/deliveries/{event_id}/redeliver")
    if as_json:
        print_json(sent)
    else:
        say(f"{event_id} is sent to {webhook_id} again.")


@commands.command(
    epilog=examples(
        "xalen-batch webhooks replay whe_0192… --from 2026-11-01 --to 2026-11-02",
        "xalen-batch webhooks replay whe_0192… --from 2026-11-01 --to 2026-11-02 --state all",
    )
)
@with_option_groups
def replay(
    webhook_id: WebhookId,
    since: Annotated[
        str,
        typer.Option("--from", metavar="TIME", help="Events from this time on, UTC: `2026-11-01`."),
    ],
    until: Annotated[
        str, typer.Option("--to", metavar="TIME", help="Events before this time, UTC.")
    ],
    state: Annotated[
        Replayed,
        typer.Option(help="`failed`: events that did not arrive. `all`: those that did, too."),
    ] = Replayed.FAILED,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """Send the events of a span to a webhook again, also those from before it was made."""
    body = {
        "from": clock.moment(since, "--from"),
        "to": clock.moment(until, "--to"),
        "state": state.value,
    }
    found = api.connect().post(f"/webhooks/{webhook_id}/replay", body)
    if as_json:
        print_json(found)
    else:
        say(f"{counted(found['events'], 'event')} {'is' if found['events'] == 1 else 'are'} sent.")
