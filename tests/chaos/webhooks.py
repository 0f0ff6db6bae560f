"""Kill workers and the API with -9 while webhooks are sent, and count what receivers got.

    python -m tests.chaos.webhooks                60 kills
    python -m tests.chaos.webhooks --kills 200

Batches end all the time, and each end is told to three webhooks: one that answers at once, one that
takes its time, and one that fails now and then. An event is lost if a receiver never accepted it,
and doubled if it accepted it more than once. The exit code is 1 if an event is lost, or if a batch
has ended without one.
"""

import argparse
import random
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any

import openai

from tests import factories
from tests.e2e import stack
from tests.e2e.stack import Stack
from tests.receivers import Answering, Got, Receiver, receiving, status
from tests.waiting import wait_until
from xalen import XALEN
from xalen_batch.accounts.accounts import Scope

ENDPOINT = "/v1/chat/completions"
TYPES = ("batch.completed", "batch.failed")
SETTINGS: dict[str, object] = {
    "webhook_allow_http": "true",
    "webhook_allowed_networks": "127.0.0.1/32",
    "lease": 2,
    "poll_interval": 0.2,
    "tick_interval": 1,
    "quota_changes_per_minute": "none",
}
# Seconds between two kills.
LEAST, MOST = 1.0, 3.0


def slow(request: BaseHTTPRequestHandler, got: Got) -> None:
    time.sleep(0.15)
    status(200)(request, got)


def failing(chance: random.Random) -> Answering:
    """Fail the first attempt of every fifth event."""
    failed: set[str] = set()

    def answer(request: BaseHTTPRequestHandler, got: Got) -> None:
        id = got.event["id"]
        fails = id not in failed and chance.random() < 0.2
        failed.add(id)
        status(503 if fails else 200)(request, got)

    return answer


class Accepted:
    """Counts the events that a receiver answered with 2xx, whether its answer arrived or not."""

    def __init__(self, receiver: Receiver, answer: Answering) -> None:
        self.events: Counter[str] = Counter()
        self._answer = answer
        receiver.answer = self

    def __call__(self, request: BaseHTTPRequestHandler, got: Got) -> None:
        # Not the instance's: a connection that is kept has the one of the delivery before.
        sent = partial(type(request).send_response, request)

        def send_response(code: int, message: str | None = None) -> None:
            if 200 <= code < 300:
                self.events[got.event["id"]] += 1
            sent(code, message)

        request.send_response = send_response  # type: ignore[method-assign]
        self._answer(request, got)


def submit(client: XALEN, good: str, bad: str, is_over: threading.Event) -> list[str]:
    """Make batches until `is_over`; their ids. Every third fails validation."""
    made: list[str] = []
    while not is_over.is_set():
        with suppress(openai.APIError):
            batch = client.batches.create(
                input_file_id=good if len(made) % 3 else bad,
                endpoint=ENDPOINT,
                completion_window="24h",
            )
            made.append(batch.id)
        time.sleep(0.02)
    return made


class Victims:
    """Two workers and the API, each started again when it was killed."""

    def __init__(self, system: Stack) -> None:
        self._system = system
        self._workers = [system.worker, system.start("worker")]

    def kill(self, chance: random.Random) -> str:
        """Kill one of them; which."""
        if chance.random() < 0.15:
            self._system.kill(self._system.api)
            self._system.restart_api()
            return "api"
        number = chance.randrange(len(self._workers))
        self._system.kill(self._workers[number])
        self._workers[number] = self._system.start("worker")
        return "worker"


def an_admin(system: Stack) -> XALEN:
    """A client whose key may change webhooks."""
    with system.session() as session:
        key = factories.key(session, livemode=True, scopes=list(Scope))
        session.commit()
    return XALEN(base_url=f"{system.address}/v1", api_key=key, max_retries=20)


def run(kills: int, seed: int) -> int:
    chance, killed = random.Random(seed), Counter[str]()
    with ExitStack() as parts:
        system = parts.enter_context(stack.running(settings=SETTINGS))
        victims, client = Victims(system), an_admin(system)
        accepted = []
        for answer in (status(200), slow, failing(chance)):
            receiver = parts.enter_context(receiving())
            accepted.append(Accepted(receiver, answer))
            client.webhooks.endpoints.create(url=receiver.url, events=[*TYPES])
        line = factories.jsonl([factories.chat_line("a")])
        good, bad = (
            client.files.create(file=("lines.jsonl", content), purpose="batch").id
            for content in (line, b"{}\n")
        )
        is_over = threading.Event()
        batches: list[str] = []
        submitting = threading.Thread(
            target=lambda: batches.extend(submit(client, good, bad, is_over))
        )
        submitting.start()
        while killed.total() < kills:
            time.sleep(chance.uniform(LEAST, MOST))
            killed[victims.kill(chance)] += 1
        is_over.set()
        submitting.join()
        hooks = [hook.id for hook in client.webhooks.endpoints.list()]
        for id in batches:
            wait_until(lambda id=id: client.batches.retrieve(id).status in ("completed", "failed"))
        wait_until(lambda: not any(pending(client, hook) for hook in hooks), timeout=600)
        told = events(client)
    ended = {event["data"]["id"] for event in told}
    ids = {event["id"] for event in told}
    lost = sum(len(ids - one.events.keys()) for one in accepted)
    doubled = sum(count - 1 for one in accepted for count in one.events.values())
    untold = len(set(batches) - ended)
    sys.stdout.write(
        f"kills {killed.total()} ({', '.join(f'{name} {n}' for name, n in sorted(killed.items()))})"
        f" | batches {len(batches)} | events {len(ids)} | deliveries {len(ids) * len(accepted)}"
        f" | batches without an event {untold} | lost {lost} | doubled {doubled}\n"
    )
    return int(bool(lost or untold))


def pending(client: XALEN, hook: str) -> bool:
    page = client.webhooks.endpoints.list_deliveries(hook, state="pending", limit=1)
    return bool(page.data)


def events(client: XALEN) -> list[dict[str, Any]]:
    """All events of batches."""
    found: list[dict[str, Any]] = []
    for type in TYPES:
        query, after = {"type": type, "limit": 100, "order": "asc"}, None
        while True:
            page = client.get(
                "/events",
                cast_to=dict,
                options={"params": query if after is None else query | {"after": after}},
            )
            found += page["data"]
            after = page["last_id"]
            if not page["has_more"]:
                break
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.chaos.webhooks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=60, help="how many kills (default: 60)")
    parser.add_argument("--seed", type=int, default=1, help="of the kills (default: 1)")
    chosen = parser.parse_args()
    return run(chosen.kills, chosen.seed)


if __name__ == "__main__":
    sys.exit(main())
