"""The end of a run's rows: all batches are sealed, the rows are dropped, and nothing is missing."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import openai
import psycopg

from tests.chaos.drive import Delivery, merged
from tests.chaos.system import System
from tests.waiting import wait_until

# Seconds within which the batches of a run are sealed: a lease that a killed worker left runs out.
BOUND = 30.0
REQUEST_TIMEOUT = 30.0

_UNSEALED = """
    SELECT count(*) FROM batches WHERE metadata ->> 'run' = %s AND status <> 'failed' AND sealed_at IS NULL
"""
_LEFT = "SELECT count(*) FROM results JOIN batches ON id = batch_id WHERE metadata ->> 'run' = %s"
# As if it were next week.
_DROP = "SELECT drop_sealed_results(now() + interval '20 days')"
_MAKE = (
    "SELECT create_results_day((now() AT TIME ZONE 'UTC')::date + n) FROM generate_series(0, 7) n"
)


def unsealed(system: System, run: str) -> list[str]:
    """Wait until the batches of a run are sealed."""
    with system.connect() as connection:
        connection.autocommit = True

        def left() -> int:
            row = connection.execute(_UNSEALED, [run]).fetchone()
            return int(row[0]) if row else 0

        try:
            wait_until(lambda: not left(), timeout=system.lease + BOUND)
        except AssertionError:
            return [f"{left()} batches are not sealed after {system.lease + BOUND:.0f} s"]
    return []


def wrong(system: System, run: str, deliveries: Sequence[Delivery]) -> list[str]:
    """Drop the rows of sealed batches, and download their files again."""
    with system.connect() as connection:
        connection.autocommit = True
        left = _drop(connection, run)
    found = [f"{left} rows of sealed batches are left"] if left else []
    with openai.OpenAI(
        base_url=system.base_url, api_key=system.key, timeout=REQUEST_TIMEOUT
    ) as client:
        for delivery in deliveries:
            found += _changed(client, delivery)
    return found


def _drop(connection: psycopg.Connection, run: str) -> int:
    """Drop all partitions but for new, empty ones. Returns how many of the run's rows are left."""

    def is_empty() -> bool:
        # Null as long as a worker's look at the table keeps the lock.
        connection.execute(_DROP)
        return connection.execute(_LEFT, [run]).fetchone() == (0,)

    try:
        wait_until(is_empty, timeout=BOUND)
    except AssertionError:
        row = connection.execute(_LEFT, [run]).fetchone()
        return int(row[0]) if row else 0
    while connection.execute(_DROP).fetchone() != (None,):
        pass
    connection.execute(_MAKE)
    return 0


def _changed(client: openai.OpenAI, delivery: Delivery) -> Iterator[str]:
    for name, before in (("output", delivery.output), ("error", delivery.errors)):
        file_id = delivery.batch.get(f"{name}_file_id")
        now: list[dict[str, Any]] = []
        if file_id:
            now = [json.loads(line) for line in client.files.content(file_id).content.splitlines()]
        if now != before:
            yield f"{delivery.order.name}: the {name} file changed when it was sealed"
    if delivery.merged and merged(client, delivery.batch["id"]) != delivery.merged:
        yield f"{delivery.order.name}: the merged results changed when it was sealed"
