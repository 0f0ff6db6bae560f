"""`explain`: what happened to one line of a batch."""

import json
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import quote

import typer

from xalen_batch.cli.client import ApiOptions
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import BatchId, Json, examples
from xalen_batch.cli.output import fields, figure, moment, print_json, show

# Characters of a request or an answer that are shown; --json prints all.
SHOWN = 2_000

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "xalen-batch explain batch_0192… order-17",
        "xalen-batch explain batch_0192… order-17 --json | jq .charge",
    )
)
@with_option_groups
def explain(
    batch_id: BatchId,
    custom_id: Annotated[str, typer.Argument(metavar="CUSTOM_ID", help="The line's `custom_id`.")],
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """Show one line: its request, its answer or error, its tokens, and its exact price.

    Also the last failed attempts at it, and why it waits if it has no answer yet.
    """
    found = api.connect().get(f"/batches/{batch_id}/lines/{quote(custom_id, safe='')}")
    if as_json:
        print_json(found)
    else:
        show(fields(_rows(found)))


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, object]]:
    for name in ("batch_id", "custom_id", "line", "status", "model", "answered_by"):
        yield name, "-" if found[name] is None else found[name]
    yield "request", _cut(found["request"])
    yield "result", _cut(found["result"])
    if found["reason"]:
        yield "reason", found["reason"]
    if found["failed_attempts"]:
        yield "failed attempts", _count(found)
        for attempt in found["attempts"]:
            yield "", _attempt(attempt)
    if found["usage"]:
        yield (
            "usage",
            " ".join(f"{name}={_figure(value)}" for name, value in found["usage"].items()),
        )
    if found["charge"]:
        yield "charge", _charge(found["charge"])


def _count(found: dict[str, Any]) -> str:
    shown, count = len(found["attempts"]), found["failed_attempts"]
    return figure(count) if shown == count else f"{figure(count)}; the last {shown}:"


def _attempt(attempt: dict[str, Any]) -> str:
    """`2026-11-29 01:30:05 UTC busy (503) at server 1 after 0.12 s`."""
    parts = [moment(attempt["at"]), attempt["error"].replace("_", " ")]
    if attempt["status_code"] is not None:
        parts.append(f"({attempt['status_code']})")
    if attempt["server"] is not None:
        parts.append(f"at server {attempt['server']}")
    if attempt["seconds"] is not None:
        parts.append(f"after {attempt['seconds']} s")
    return " ".join(parts)


def _charge(charge: dict[str, Any]) -> str:
    """`1,000 input × 0.02 + 500 output × 0.04 per million = 0.00004; less 50 % = 0.00002 USD`."""
    amount = f"{charge['amount']} {charge['currency']}"
    if charge["components"] is None:
        return amount
    parts = [
        f"{figure(part['tokens'])} {part['component']} × {part['unit_price'] or 'no price'}"
        for part in charge["components"]
    ]
    percent = f"{float(charge['discount_rate']) * 100:g} %"
    return (
        f"{' + '.join(parts) or '0 tokens'} per million = {charge['subtotal']}; less {percent} ="
        f" {amount}"
    )


def _figure(value: object) -> str:
    return figure(value) if isinstance(value, int) else str(value)


def _cut(value: Any) -> str:
    if value is None:
        return "-"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… (--json prints all of it)"
