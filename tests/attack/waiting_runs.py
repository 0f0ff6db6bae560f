"""One account piles up runs that wait and schedules that are due; its own requests and another
account's schedule must not wait for them.
"""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.attack.system import Figure, Size, System
from tests.wire import Client

SETTINGS: Mapping[str, object] = {
    "schedule_min_interval": 60,
    # The batches of runs stay open, since their window is closed; a low quota makes runs wait soon.
    "quota_open_batches": 20,
    "quota_changes_per_minute": "none",
    "quota_requests_per_second": "none",
}
CATALOG = ""

EVERY_MINUTE = {"cron": "* * * * *", "overlap": "allow"}
BACKFILLS = {Size.SMALL: 3, Size.FULL: 21}
SCHEDULES = {Size.SMALL: 8, Size.FULL: 500}
# Seconds before the other account's fire at which SMALL begins its requests; FULL sends requests
# during the whole minute.
BEFORE_FIRE = 5


def attack(system: System, size: Size) -> Iterator[Figure]:
    greedy, other = (
        Client(system.base_url, system.new_account(name)) for name in ("greedy", "other")
    )
    file_id, others_file = greedy.upload(), other.upload()
    now = datetime.now(UTC)
    window = {
        "start": f"{now + timedelta(hours=3):%H:%M}",
        "end": f"{now + timedelta(hours=4):%H:%M}",
    }
    piled = greedy.schedule(file_id, cron="*/5 * * * *", overlap="allow", execution_window=window)[
        "id"
    ]
    backfills = [
        {
            "from": f"{now - timedelta(minutes=490 * (n + 1)):%Y-%m-%dT%H:%M}",
            "to": f"{now - timedelta(minutes=490 * n):%Y-%m-%dT%H:%M}",
        }
        for n in range(BACKFILLS[size])
    ]
    # Each of these schedules fires a run in each minute, which waits as well.
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda _: greedy.schedule(file_id, **EVERY_MINUTE, execution_window=window),
                range(SCHEDULES[size]),
            )
        )
    for times in backfills:
        greedy.ask("POST", f"/schedules/{piled}/backfill", times)
    # It fires at a minute, when the schedules of the greedy one fire.
    watched = other.schedule(others_file, **EVERY_MINUTE)
    if size is Size.SMALL:
        time.sleep(max(0.0, watched["next_fire_at"] - time.time() - BEFORE_FIRE))
    greedy.seconds.clear()
    until = watched["next_fire_at"] + 30
    run: dict[str, Any] | None = None
    while run is None and time.time() < until:
        greedy.ask("POST", f"/schedules/{piled}/run")
        greedy.ask("POST", f"/schedules/{piled}/backfill", backfills[0])
        run = next(
            (
                run
                for run in other.ask("GET", f"/schedules/{watched['id']}/runs")["data"]
                if run["fired_at"]
            ),
            None,
        )
    late = time.time() - watched["next_fire_at"] if run is None else run["lag"]
    yield Figure("slowest POST of the account with waiting runs, s", max(greedy.seconds), 2)
    yield Figure("another account's schedule fired late, s", late, 3)
