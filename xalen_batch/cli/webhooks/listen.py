"""`webhooks listen`: print the account's events as they come."""

import json
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from xalen_batch.cli import clock
from xalen_batch.cli.client import ApiClient, ApiOptions
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import print_line, say

commands = typer.Typer()
ALL = "all"
PAUSE = 1.0
# Seconds for which events are asked for again: a transaction that takes long commits an event
# behind later ones.
LOOK_BACK = 60.0


@commands.command(
    epilog=examples(
        "xalen-batch webhooks listen",
        "xalen-batch webhooks listen --events batch.completed,batch.failed",
        "xalen-batch webhooks listen --json | jq -r .data.id",
    )
)
@with_option_groups
def listen(
    events: Annotated[
        str | None,
        typer.Option(metavar="TYPES", help="Comma-separated types, or `all`, as if not given."),
    ] = None,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """Print your account's events as they come, until Ctrl-C. Needs no webhook and no public URL.

    With --json, one object on a line, as a receiver gets it.
    """
    types = {part.strip() for part in (events or ALL).split(",") if part.strip()}
    client = api.connect()
    if types != {ALL}:
        for type in types:
            # An unknown type is an error of the API, which names those that there are.
            client.get("/events", limit=1, type=type)
    following = Events(client)
    say("Listening; Ctrl-C ends it.")
    for event in following.follow():
        if types != {ALL} and event["type"] not in types:
            continue
        if as_json:
            print_line(json.dumps(event, separators=(",", ":")))
        else:
            when = clock.utc(event["created_at"])
            print_line(f"{when}  {event['type']}  {event['data']['id']}")


class Events:
    """The events of an account that are recorded from now on, each once."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        latest = client.get("/events", limit=100)["data"]
        # When each event was first seen, oldest first; those before are not printed.
        self._seen: dict[str, float] = {event["id"]: time.monotonic() for event in reversed(latest)}

    def follow(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from self.new()
            time.sleep(PAUSE)

    def new(self) -> Iterator[dict[str, Any]]:
        """The events since the last look, in their order."""
        after = self._position()
        while True:
            page = self._client.get("/events", order="asc", limit=100, after=after)
            for event in page["data"]:
                if event["id"] not in self._seen:
                    self._seen[event["id"]] = time.monotonic()
                    yield event
            if not page["has_more"]:
                return
            after = page["last_id"]

    def _position(self) -> str | None:
        """The newest event that was seen LOOK_BACK ago; later ones are asked for again."""
        horizon = time.monotonic() - LOOK_BACK
        old = [id for id, seen in self._seen.items() if seen < horizon]
        for id in old[:-1]:
            del self._seen[id]
        return old[-1] if old else None
