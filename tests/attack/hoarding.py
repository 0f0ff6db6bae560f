"""One account makes keys, schedules, files, inbox requests and waiting runs until it is refused;
each kind must be refused at its cap.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta

from tests.attack.system import Figure, Size, System
from tests.wire import Client
from xalen_batch.ratelimit.account import UNKNOWN_PROCESSES

CAPS = {
    "api_keys": 8,
    "schedules": 8,
    "files": 8,
    "inbox_requests": 8,
    "waiting_runs": 8,
    "idempotency_keys": 8,
}
STORAGE_BYTES = 600_000
CHANGES_PER_MINUTE = 120
SETTINGS: Mapping[str, object] = {
    **{f"quota_{name}": most for name, most in CAPS.items()},
    "quota_storage_bytes": STORAGE_BYTES,
    "quota_changes_per_minute": CHANGES_PER_MINUTE,
    # So that every run waits.
    "quota_open_batches": 0,
}
CATALOG = ""
# How far beyond its cap an account continues if nothing refuses it.
BEYOND = {Size.SMALL: 4, Size.FULL: 200}
# Bytes of one large request for an inbox.
LARGE = 100_000


def attack(system: System, size: Size) -> Iterator[Figure]:
    made_key = system.run(
        "keys",
        "create",
        "--account",
        "greedy",
        "--create-account",
        "--scopes",
        "submit,read,admin",
        "--json",
    )
    greedy = Client(system.base_url, json.loads(made_key)["secret"])
    file_id = greedy.upload()
    nightly = {"cron": "30 2 * * *", "overlap": "allow"}
    inbox = greedy.schedule(None, **nightly)["id"]
    piled = greedy.schedule(file_id, **nightly)["id"]
    now = datetime.now(UTC)

    def backfill(number: int) -> int:
        times = {
            "from": f"{now - timedelta(days=number + 2):%Y-%m-%dT12:00}",
            "to": f"{now - timedelta(days=number + 1):%Y-%m-%dT12:00}",
        }
        return greedy.status("POST", f"/schedules/{piled}/backfill", times)

    def fill(number: int, key: str | None = None) -> int:
        headers = {} if key is None else {"idempotency-key": key}
        return greedy.status(
            "POST", f"/schedules/{inbox}/requests", greedy.line(f"{number}"), headers
        )

    makers: dict[str, tuple[int, Callable[[int], int]]] = {
        # The account already has a key, two schedules and a file. An inbox keeps only one copy of
        # the same request.
        "idempotency_keys": (0, lambda number: fill(0, key=f"{number}")),
        "waiting_runs": (0, backfill),
        "api_keys": (1, lambda number: greedy.status("POST", "/api_keys", {"name": "more"})),
        "schedules": (
            2,
            lambda number: greedy.status(
                "POST", "/schedules", greedy.definition(file_id, **nightly)
            ),
        ),
        "inbox_requests": (1, lambda number: fill(number + 1)),
        "files": (1, lambda number: greedy.status("POST", "/files", greedy.form())),
    }
    for name, (held, make) in makers.items():
        made = _made(make, CAPS[name] - held + BEYOND[size])
        yield Figure(
            f"{name} made beyond the cap of {CAPS[name]}", max(0, held + made - CAPS[name]), 0
        )
    heavy = Client(system.base_url, system.new_account("heavy"))
    large = heavy.schedule(None, **nightly)["id"]
    made = _made(
        lambda number: heavy.status(
            "POST", f"/schedules/{large}/requests", heavy.line(f"{number}", "x" * LARGE)
        ),
        STORAGE_BYTES // LARGE + BEYOND[size],
    )
    yield Figure(
        f"inbox bytes beyond a quota of {STORAGE_BYTES:,} bytes",
        max(0, made * LARGE - STORAGE_BYTES),
        0,
    )
    begun = time.monotonic()
    made = _made(
        lambda number: greedy.status("POST", f"/schedules/{piled}/pause", {"note": f"{number}"}),
        2 * CHANGES_PER_MINUTE,
    )
    # The changes of one minute at once, those that are refilled meanwhile, and those that the API
    # grants by itself while Redis is late (a fourth of the limit).
    allowed = CHANGES_PER_MINUTE * (1 + (time.monotonic() - begun) / 60 + 1 / UNKNOWN_PROCESSES)
    yield Figure(
        f"changes made, as a share of what {CHANGES_PER_MINUTE} a minute allow", made / allowed, 1
    )


def _made(make: Callable[[int], int], most: int) -> int:
    """The number of objects that are made before the first 429; `most` are tried."""
    for number in range(most):
        if (status := make(number)) == 429:
            return number
        if status != 200:
            raise RuntimeError(f"answered {status}")
    return most
