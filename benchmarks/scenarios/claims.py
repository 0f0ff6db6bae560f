"""Does a claim take longer the more waits?

The claim alone, on a PostgreSQL of its own, with a thousand tasks and with a million.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks import backlog
from benchmarks.samples import Contender, Figure, Sample, at_most
from benchmarks.scenarios.scenario import Results, Scenario, found
from benchmarks.stage import Stage

FEW, MILLION = "1,000 tasks", "1,000,000 tasks"
CLAIMS = 300
# The first claims of a connection are planned one by one; from then on it has a plan.
FIRST = 20


def _contenders(stage: Stage) -> list[Contender]:
    claims = stage.scaled(CLAIMS)
    return [
        Contender(FEW, lambda: _measure(claims, batches=20, tasks=50, accounts=10)),
        Contender(
            MILLION,
            lambda: _measure(
                claims, batches=stage.scaled(20_000), tasks=50, accounts=stage.scaled(200)
            ),
        ),
    ]


def _measure(claims: int, *, batches: int, tasks: int, accounts: int) -> Sample:
    with _database():
        from xalen_batch import db
        from xalen_batch.models.next_task import FreeCapacity, claim
        from xalen_batch.pipeline import recover

        def take(*rooms: FreeCapacity) -> float:
            started = time.perf_counter()
            with db.transaction() as session:
                claim(
                    session,
                    worker="bench",
                    lease=600,
                    rooms=rooms,
                    room=backlog.LINES,
                    with_suspects=True,
                )
            return time.perf_counter() - started

        def look() -> float:
            started = time.perf_counter()
            recover.due()
            return time.perf_counter() - started

        with db.transaction() as session:
            backlog.fill(session, batches=batches, tasks=tasks, accounts=accounts)
        for _ in range(FIRST):
            take()
        taken = [take() for _ in range(claims)]
        passed = [take(FreeCapacity(0, backlog.CHAT_MODEL, False)) for _ in range(claims // 5)]
        looks = [look() for _ in range(FIRST)]
    more = {
        "claim_ms": median(taken) * 1e3,
        "full_lane_ms": median(passed) * 1e3,
        "due_ms": median(looks) * 1e3,
    }
    return Sample(claims, sum(taken), more={name: round(value, 3) for name, value in more.items()})


@contextmanager
def _database() -> Iterator[None]:
    """A new PostgreSQL with the product's tables, behind `db.transaction()` of this process."""
    from xalen_batch import config, db, log, migrate
    from xalen_batch.standalone import stores

    # Its events are no part of the report.
    logging.disable(logging.INFO)
    log.configure()
    with TemporaryDirectory(prefix="xalen-bench-") as folder:
        server = stores.Postgres(
            Path(folder) / "postgres", Path(folder) / "postgres.log", durable=False
        )
        before = {
            name: value for name, value in os.environ.items() if name.endswith("DATABASE_URL")
        }
        try:
            server.start()
            # The owner serves here: it fills the tables and analyses them.
            os.environ["XALEN_DATABASE_URL"] = server.owner_url
            os.environ.pop("XALEN_MIGRATE_DATABASE_URL", None)
            config.settings.cache_clear()
            db.engine.cache_clear()
            migrate.migrate()
            yield
        finally:
            if db.engine.cache_info().currsize:
                db.engine().dispose()
            server.stop()
            logging.disable(logging.NOTSET)
            os.environ.pop("XALEN_DATABASE_URL")
            os.environ.update(before)
            config.settings.cache_clear()
            db.engine.cache_clear()


def _read(results: Results) -> Iterator[Figure]:
    few, million = found(results, FEW), found(results, MILLION)
    if few and million:
        yield Figure(
            "time of a claim, a million tasks against a thousand",
            million.more("claim_ms") / few.more("claim_ms"),
            target=at_most(5),
        )
        yield Figure("a claim with a million tasks", million.more("claim_ms"), "ms")
        yield Figure("a claim with a thousand tasks", few.more("claim_ms"), "ms")
        yield Figure(
            "passing over a full lane of a million tasks", million.more("full_lane_ms"), "ms"
        )
        yield Figure(
            "a worker's look for what is due, a million tasks", million.more("due_ms"), "ms"
        )


SCENARIOS = [
    Scenario(
        "claims",
        "300 claims with 1,000 tasks waiting, and with 1,000,000 in 20,000 batches of 200 accounts",
        _contenders,
        _read,
        runs=1,
    )
]
