"""Arguments, options and tables of the commands about webhooks."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.text import Text

from xalen_batch.cli import clock
from xalen_batch.cli.output import fields, moment, print_json, print_line, say, show
from xalen_batch.cli.stacked import Layout, stacked


def _webhook_id(text: str) -> str:
    if not text.startswith("whe_"):
        raise typer.BadParameter(
            f"{text!r} is not the id of a webhook, `whe_…`. `xalen-batch webhooks list` shows the"
            " ids."
        )
    return text


WebhookId = Annotated[
    str, typer.Argument(metavar="ID", help="The webhook, `whe_…`.", callback=_webhook_id)
]
WEBHOOKS: tuple[Layout, ...] = (
    (("id",), ("url",), ("events",), ("status",), ("last",)),
    (("id", "status"), ("url", "events"), ("last",)),
)
DELIVERIES: tuple[Layout, ...] = (
    (("event",), ("type",), ("about",), ("state",), ("attempts",), ("last",)),
    (("event", "type"), ("about", "state"), ("attempts", "last")),
)
COLOURS = {"enabled": "green", "delivered": "green", "disabled": "red", "failed": "red"}


def print_secret(webhook: dict[str, Any], as_json: bool) -> None:
    """Print a webhook with its new secret, which is not shown again."""
    if as_json:
        print_json(webhook)
        return
    print_line(webhook["secret"])
    say(f"{webhook['id']} posts to {webhook['url']}. Keep the secret: it is not shown again.")


def print_webhooks(found: Sequence[dict[str, Any]]) -> None:
    rows = [
        (
            webhook["id"],
            webhook["url"],
            "all" if webhook["events"] is None else ", ".join(webhook["events"]),
            _coloured(_status(webhook), webhook["status"]),
            _last(webhook),
        )
        for webhook in found
    ]
    show(stacked(WEBHOOKS, rows, folded=("url", "events")))


def print_webhook(webhook: dict[str, Any]) -> None:
    pairs: list[tuple[str, object]] = [
        ("id", webhook["id"]),
        ("url", webhook["url"]),
        ("events", "all" if webhook["events"] is None else ", ".join(webhook["events"])),
        ("status", _coloured(_status(webhook), webhook["status"])),
        ("created", moment(webhook["created_at"])),
        ("last attempt", _last(webhook)),
    ]
    if webhook["description"]:
        pairs.insert(1, ("description", webhook["description"]))
    if webhook["batch_id"]:
        pairs.append(("of batch", webhook["batch_id"]))
    if webhook["consecutive_failures"]:
        pairs.append(("failures in a row", webhook["consecutive_failures"]))
    if webhook["previous_secret_expires_at"]:
        pairs.append(("old secret until", clock.utc(webhook["previous_secret_expires_at"])))
    show(fields(pairs))


def print_deliveries(found: Sequence[dict[str, Any]]) -> None:
    rows = [
        (
            delivery["id"],
            delivery["event"]["type"],
            delivery["event"]["data"]["id"],
            _coloured(delivery["state"], delivery["state"]),
            delivery["attempts"],
            outcome(delivery),
        )
        for delivery in found
    ]
    show(stacked(DELIVERIES, rows, folded=("last",)))


def outcome(delivery: dict[str, Any]) -> str:
    """The last attempt of a delivery in words."""
    if delivery["error"] is not None:
        found = str(delivery["error"])
    elif delivery["status_code"] is not None:
        found = f"The receiver answered {delivery['status_code']} in {delivery['duration_ms']} ms."
    else:
        found = "Not attempted yet."
    if delivery["next_attempt_at"] is not None and delivery["attempts"]:
        found += f" Next attempt: {clock.utc(delivery['next_attempt_at'])}."
    return found


def _status(webhook: dict[str, Any]) -> str:
    reason = webhook["disabled_reason"]
    return f"{webhook['status']}, {reason}" if reason else str(webhook["status"])


def _last(webhook: dict[str, Any]) -> str:
    if webhook["last_delivery_at"] is None:
        return "-"
    answer = webhook["last_status_code"] or "no answer"
    return f"{moment(webhook['last_delivery_at'])}, {answer}"


def _coloured(words: str, state: str) -> Text:
    return Text(words, style=COLOURS.get(state, ""))
