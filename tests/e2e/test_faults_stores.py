"""A store that stops, hangs, fills up or is hard to reach costs time only: no process needs a
restart, and each line has one result.

XALEN_TEST_OUTAGE is the least number of seconds without Redis, even if the batch ends before.
"""

import os
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.e2e import processes
from tests.e2e.stack import Stack
from tests.fault_proxy import FaultProxy
from tests.waiting import wait_until

OUTAGE = float(os.environ.get("XALEN_TEST_OUTAGE", "0"))
LINES = 100
# The ways in which Redis is unavailable.
OUTAGES: dict[str, Callable[[Stack], object]] = {
    "refused": lambda stack: stack.redis.refuse(),
    "a black hole": lambda stack: stack.redis.black_hole(),
    "reset": lambda stack: stack.redis.reset(),
    "frozen": lambda stack: to_valkey(stack, signal.SIGSTOP),
}


def to_valkey(stack: Stack, number: signal.Signals) -> None:
    assert stack.valkey.process is not None
    stack.valkey.process.send_signal(number)


@pytest.fixture(autouse=True)
def _healed(services: Stack) -> Iterator[None]:
    yield
    services.database.heal()
    services.redis.heal()
    to_valkey(services, signal.SIGCONT)
    services.wait_until_ready()


def wait_for_word(stack: Stack, word: str, seen: int = 0) -> None:
    """Wait until the worker's log has the word once more than `seen` times."""
    log = stack.folder / "worker.log"
    processes.wait_until(lambda: log.read_text("utf-8", "replace").count(word) > seen, log=log)


def words(stack: Stack, word: str) -> int:
    return (stack.folder / "worker.log").read_text("utf-8", "replace").count(word)


def wait_for_come_back_later(
    stack: Stack, method: str = "GET", path: str = "/v1/batches", body: object = None
) -> None:
    """Repeat a request until it gets a 503 with Retry-After; no other 5xx may come before."""

    def look() -> bool:
        answer = stack.ask(method, path, body)
        assert answer.status < 500 or answer.is_come_back_later, answer
        return answer.status == 503

    processes.wait_until(look, process=stack.api)


class TestRedis:
    @pytest.mark.timing
    @pytest.mark.parametrize("way", OUTAGES)
    def test_a_batch_runs_without_redis_and_no_call_waits_for_it(
        self, services: Stack, way: str
    ) -> None:
        OUTAGES[way](services)
        until = time.monotonic() + OUTAGE
        assert services.ask("GET", "/readyz").body["status"] == "degraded"
        batch = services.submit(LINES)
        seconds = [
            services.ask("POST", f"/v1/batches/{services.submit(1).id}/cancel").seconds
            for _ in range(4)
        ]
        services.is_done(batch, lines=LINES)
        while time.monotonic() < until:
            seconds.append(
                services.ask("POST", f"/v1/batches/{services.submit(1).id}/cancel").seconds
            )
        # A busy machine slows single calls; a wait for Redis would slow all of them.
        assert statistics.median(seconds) < 2
        assert services.ask("GET", "/readyz").body["status"] == "degraded"

    def test_a_redis_that_was_killed_and_is_back_empty(self, services: Stack) -> None:
        batch = services.submit_and_wait_for_some()
        assert services.valkey.process is not None
        services.kill(services.valkey.process)
        shutil.rmtree(services.valkey.folder / "appendonlydir")
        services.valkey.start()
        services.is_done(batch)
        services.wait_until_ready()
        assert services.ask("GET", "/readyz").body["status"] == "ok"


def is_dropped(services: Stack) -> bool:
    """Drop the function of a full disk; False: an INSERT held one of the partitions' locks."""
    with services.direct() as session:
        try:
            session.execute("DROP FUNCTION full_disk CASCADE")
        except psycopg.errors.DeadlockDetected:
            return False
    return True


class TestPostgres:
    def test_stopped_immediately_in_mid_batch(self, services: Stack) -> None:
        batch = services.submit_and_wait_for_some()
        assert services.postgres.process is not None
        os.kill(services.postgres.process.pid, signal.SIGQUIT)
        services.postgres.process.wait(30)
        try:
            wait_for_come_back_later(services)
            assert services.ask("GET", "/readyz").status == 503
        finally:
            services.postgres.start()
        services.is_done(batch)

    def test_its_connections_are_exhausted(self, services: Stack) -> None:
        batch = services.submit_and_wait_for_some()
        held: list[psycopg.Connection] = []

        def take_all() -> bool:
            # Those that the services had are taken too, as they end.
            services.database.break_connections()
            try:
                while True:
                    held.append(services.direct())
            except psycopg.OperationalError:
                return services.ask("GET", "/v1/batches").is_come_back_later

        try:
            processes.wait_until(take_all)
        finally:
            for connection in held:
                connection.close()
        services.is_done(batch)

    def test_a_lock_of_ten_seconds(self, services: Stack) -> None:
        batch = services.submit_and_wait_for_some()
        with services.direct() as locker:
            with locker.transaction():
                locker.execute("LOCK TABLE batches IN ACCESS EXCLUSIVE MODE")
                assert services.ask("GET", "/livez").status == 200
                locker.execute("SELECT pg_sleep(10)")
            answer = services.ask("GET", "/v1/batches")
            assert answer.status == 200
        services.is_done(batch)

    def test_a_lock_for_longer_than_anyone_waits(self, services: Stack) -> None:
        batch = services.submit_and_wait_for_some()
        with services.direct() as locker, locker.transaction():
            locker.execute("LOCK TABLE batches IN ACCESS EXCLUSIVE MODE")
            wait_for_come_back_later(services)
        services.is_done(batch)

    def test_silence(self, services: Stack) -> None:
        batch = services.submit_and_wait_for_some()
        services.database.black_hole()
        wait_for_come_back_later(services)
        assert min(services.ask("GET", "/livez").seconds for _ in range(5)) < 2
        checks = services.ask("GET", "/readyz").body["checks"]
        assert (checks["database"]["status"], checks["redis"]["status"]) == ("failed", "ok")
        services.database.heal()
        services.is_done(batch)

    def test_it_only_reads_until_another_server_is_promoted(self, services: Stack) -> None:
        batch = services.submit_and_wait_for_some()
        seen = words(services, "poll.failed")
        nothing = {
            "input_file_id": "file-none",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        with services.direct() as session:
            session.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
            services.database.break_connections()
            wait_for_come_back_later(services, "POST", "/v1/batches", nothing)
            wait_for_word(services, "poll.failed", seen)
            session.execute("SET default_transaction_read_only = off")
            session.execute("ALTER DATABASE postgres RESET default_transaction_read_only")
        services.is_done(batch)

    def test_its_disk_is_full(self, services: Stack) -> None:
        # PostgreSQL's own SQLSTATE, raised where a result is written.
        batch = services.submit_and_wait_for_some()
        seen = words(services, "database.exhausted")
        with services.direct() as session:
            session.execute(
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE"
                " 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';"
                " END $$"
            )
            session.execute(
                "CREATE TRIGGER full_disk BEFORE INSERT ON results FOR EACH ROW EXECUTE FUNCTION"
                " full_disk()"
            )
            try:
                wait_for_word(services, "database.exhausted", seen)
            finally:
                wait_until(lambda: is_dropped(services))
        services.is_done(batch)

    @pytest.mark.parametrize(
        "fault",
        [
            FaultProxy.reset,
            lambda proxy: proxy.delay(0.5),
            lambda proxy: proxy.slices(1),
            lambda proxy: proxy.cut_after(3_000),
            lambda proxy: proxy.cut_after(1),
        ],
        ids=["reset", "500 ms", "slices of a byte", "cut after 3000 bytes", "cut after a byte"],
    )
    def test_a_bad_network(self, services: Stack, fault: Callable[[FaultProxy], None]) -> None:
        batch = services.submit_and_wait_for_some()
        fault(services.database)
        for _ in range(5):
            answer = services.ask("GET", "/v1/batches")
            assert answer.status == 200 or answer.is_come_back_later, answer
        services.database.heal()
        services.is_done(batch)
