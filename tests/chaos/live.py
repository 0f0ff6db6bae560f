"""Live calls beside the batches of a run, and the invariants of the ledger that they are billed in.

A call that was answered is on a ledger once, and only a killed API may lose it; a call that was not
answered is there at most once. The model server's log tells the call of each line of the ledger.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import openai
import psycopg
from psycopg.rows import dict_row

from tests.chaos.oracle import PER_TOKEN, PRICES, SHOWN, Calls
from tests.factories import CHAT_MODEL

ORDER = "live"
# Seconds between two calls of one client.
PAUSE = 0.1
REQUEST_TIMEOUT = 10.0
# Answers that ask to come back: the model is busy, a store or the model is away, no answer in time.
COME_BACK = frozenset({429, 503, 504})
RECORDED_WITHIN = 30.0


@dataclass
class Delivered:
    """The calls of a run by their tokens."""

    asked: list[str] = field(default_factory=list)
    # Prompt and completion tokens of the calls that were answered as a whole.
    answered: dict[str, tuple[int, int]] = field(default_factory=dict)
    # Answers that are a fault of the server.
    unexpected: list[str] = field(default_factory=list)


class Client(threading.Thread):
    """Makes calls until `is_over` is set. Every other call is streamed."""

    def __init__(self, base_url: str, key: str, run: str, delivered: Delivered) -> None:
        super().__init__(name="client-live", daemon=True)
        self.is_over = threading.Event()
        self._delivered = delivered
        self._run = run
        self._numbers = itertools.count(1)
        self._sdk = openai.OpenAI(
            base_url=base_url, api_key=key, max_retries=0, timeout=REQUEST_TIMEOUT
        )

    def run(self) -> None:
        while not self.is_over.wait(PAUSE):
            self.call()

    def call(self) -> str | None:
        """Make one call; its token if it was answered."""
        number = next(self._numbers)
        token = f"{self._run}-{ORDER}-{number}"
        self._delivered.asked.append(token)
        try:
            used = self._streamed(token) if number % 2 else self._whole(token)
        except openai.APIStatusError as error:
            if error.status_code not in COME_BACK or "retry-after" not in error.response.headers:
                self._delivered.unexpected.append(f"{token}: {error.status_code} {error.message}")
        except openai.APIConnectionError:
            pass
        except openai.APIError as error:
            # An event of a stream that the model, or a fault between, has broken off.
            if error.code != "model_broke_off":
                self._delivered.unexpected.append(f"{token}: {error.message}")
        except Exception as error:
            # A connection that breaks in mid-stream is an error of the SDK's HTTP library.
            if not type(error).__module__.startswith("http"):
                self._delivered.unexpected.append(f"{token}: {type(error).__name__} {error}")
        else:
            if used is not None:
                self._delivered.answered[token] = used
                return token
        return None

    def close(self) -> None:
        self._sdk.close()

    def _whole(self, token: str) -> tuple[int, int] | None:
        return _used(self._sdk.chat.completions.create(**_asked(token)).usage)

    def _streamed(self, token: str) -> tuple[int, int] | None:
        usage = None
        with self._sdk.chat.completions.create(
            **_asked(token), stream=True, stream_options={"include_usage": True}
        ) as chunks:
            for chunk in chunks:
                usage = chunk.usage or usage
        return _used(usage)


def _asked(token: str) -> dict[str, Any]:
    message = {"role": "user", "content": f"Where is parcel {token}?"}
    return {"model": CHAT_MODEL, "messages": [message]}


def _used(usage: Any) -> tuple[int, int] | None:
    return usage and (usage.prompt_tokens, usage.completion_tokens)


def end_the_day(
    connection: psycopg.Connection, client: Client, run: str, calls: Callable[[], Calls]
) -> list[str]:
    """Wait until all that was answered is recorded, and end the ledger as midnight does.

    Calls of one ledger are recorded in their order, so the last one tells of those before it.
    `calls` returns the model server's calls. The ledger gets the `metadata` of the run's batches,
    so that the checks of these are also its own.
    """
    deadline = time.monotonic() + RECORDED_WITHIN
    last = client.call()
    while last is None and time.monotonic() < deadline:
        time.sleep(PAUSE)
        last = client.call()
    if last is None:
        return ["no live call was answered at the end"]
    ids = [id for id, token in calls().live.items() if token == last]
    found = "SELECT count(*) FROM results WHERE custom_id = ANY(%s)"
    while connection.execute(found, [ids]).fetchone() == (0,):
        if time.monotonic() > deadline:
            return [f"{last} was answered, and is on no ledger after {RECORDED_WITHIN:.0f} s"]
        time.sleep(PAUSE)
    connection.execute(
        "UPDATE batches SET expires_at = now(), lease_until = now(), ledger = %s || id::text,"
        " metadata = jsonb_build_object('run', %s::text, 'order', %s::text)"
        " WHERE ledger IS NOT NULL AND status = 'finalizing'",
        [f"ended {run} ", run, ORDER],
    )
    return []


def wrong(
    connection: psycopg.Connection, run: str, delivered: Delivered, calls: Calls, *, may_lose: bool
) -> Iterator[str]:
    """All violations of the invariants. `may_lose`: the API was killed."""
    yield from (f"live: the client was told {words}" for words in delivered.unexpected)
    rows = _rows(connection, _LINES, run)
    tokens = Counter(calls.live.get(row["custom_id"], "a call that no model saw") for row in rows)
    asked, prices = set(delivered.asked), PRICES[CHAT_MODEL]
    for token, count in tokens.items():
        if count > 1:
            yield f"{token} is billed {count} times"
        if token not in asked:
            yield f"a ledger has {token}"
    for row in rows:
        token = calls.live.get(row["custom_id"], "")
        used = row["input_tokens"], row["output_tokens"]
        charge = (used[0] * prices[0] + used[1] * prices[1]) * PER_TOKEN
        if row["amount"] != charge:
            yield f"{token} was charged {row['amount']}, and costs {charge}"
        if delivered.answered.get(token, used) != used:
            yield f"{token} is billed {used}, and the client was told {delivered.answered[token]}"
    lost = [token for token in delivered.answered if not tokens[token]]
    if lost and not may_lose:
        yield f"{len(lost)} answered calls are on no ledger: {', '.join(lost[:SHOWN])}"
    lines = Counter(row["batch_id"] for row in rows)
    sums: Counter[Any] = Counter()
    for row in rows:
        sums[row["batch_id"]] += row["amount"] or Decimal(0)
    for ledger in _rows(connection, _LEDGERS, run):
        counts = {ledger[name] for name in ("total", "completed", "task_lines")}
        if ledger["status"] != "completed" or counts != {lines[ledger["id"]]}:
            yield f"a ledger of {lines[ledger['id']]} lines is {ledger['status']} with {counts}"
        if ledger["invoiced"] != sums[ledger["id"]]:
            yield f"a ledger is invoiced {ledger['invoiced']}, and its lines {sums[ledger['id']]}"


def lost(connection: psycopg.Connection, run: str, delivered: Delivered, calls: Calls) -> int:
    """Answered calls that are on no ledger."""
    billed = {calls.live.get(row["custom_id"]) for row in _rows(connection, _LINES, run)}
    return len(delivered.answered.keys() - billed)


_LINES = """
    SELECT r.* FROM results r JOIN batches b ON b.id = r.batch_id
    WHERE b.ledger IS NOT NULL AND b.metadata ->> 'run' = %s
"""
_LEDGERS = """
    SELECT b.id, b.status, b.total, b.completed, t.lines AS task_lines, i.total AS invoiced
    FROM batches b JOIN tasks t ON t.batch_id = b.id LEFT JOIN invoices i ON i.batch_id = b.id
    WHERE b.ledger IS NOT NULL AND b.metadata ->> 'run' = %s
"""


def _rows(connection: psycopg.Connection, query: str, run: str) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, [run]).fetchall()  # type: ignore[arg-type]
