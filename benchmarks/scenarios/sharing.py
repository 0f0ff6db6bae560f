"""Who shares a system: small accounts beside a giant, and one worker process beside a second."""

import threading
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

from benchmarks import consumption, lines
from benchmarks.lines import Input
from benchmarks.mock.options import Options
from benchmarks.samples import Contender, Figure, Sample, at_least, at_most
from benchmarks.scenarios.scenario import Results, Scenario, found
from benchmarks.stage import Stage
from benchmarks.system import Shape, System
from benchmarks.verification import check_answered, check_counts

ALONE, BESIDE = "20 small accounts, alone", "20 small accounts, beside 100,000 lines of another"
ACCOUNTS, SMALL_LINES = 20, 50
OPTIONS = Options(latency=0.03)
ONE, TWO = "1 worker process", "2 worker processes"
PER_PROCESS = 256


def _tenants(stage: Stage) -> list[Contender]:
    small, giant = lines.chats(stage.folder, SMALL_LINES), stage.chats(50_000)
    keys: list[str] = []

    def run(is_beside: bool) -> Sample:
        system = stage.system()
        if not keys:
            keys.extend(system.new_keys([f"small-{n}" for n in range(ACCOUNTS)]))
            _small_ones(system, keys, small)
        stage.mock.become(OPTIONS)
        before = system.cpu()
        with system.client() as client:
            giants = []
            if is_beside:
                file_id = client.upload(giant.path)
                giants = [client.create(file_id, giant.endpoint) for _ in range(2)]
                _wait_until_running(client.batch, giants[0])
            times = _small_ones(system, keys, small)
            total = ACCOUNTS * small.lines
            for batch_id in giants:
                check_counts(client.wait(batch_id), giant.lines)
                total += giant.lines
        check_answered(stage.mock.stats(), total)
        cpu = consumption.used_since(before, system.cpu())
        return Sample(total, median(times), cpu, more={"slowest_seconds": round(max(times), 3)})

    return [
        Contender(ALONE, lambda: run(is_beside=False)),
        Contender(BESIDE, lambda: run(is_beside=True)),
    ]


def _wait_until_running(batch_of: Any, batch_id: str) -> None:
    while not batch_of(batch_id)["request_counts"]["completed"]:
        time.sleep(0.02)


def _small_ones(system: System, keys: list[str], small: Input) -> list[float]:
    """All accounts submit a file at once; the seconds until each one's batch has completed."""
    times: list[float] = []

    def run(key: str) -> None:
        with system.client(key) as client:
            started = time.perf_counter()
            batch = client.wait(client.create(client.upload(small.path), small.endpoint))
            check_counts(batch, small.lines)
            times.append(time.perf_counter() - started)

    threads = [threading.Thread(target=run, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(times) < len(keys):
        raise RuntimeError("a small account's batch did not complete")
    return times


def _read_tenants(results: Results) -> Iterator[Figure]:
    alone, beside = found(results, ALONE), found(results, BESIDE)
    if alone and beside:
        yield Figure(
            "a small account's time beside the giant, against alone",
            beside.seconds / alone.seconds,
            target=at_most(2),
        )
        yield Figure(
            "the slowest small account beside the giant", beside.more("slowest_seconds"), "s"
        )
        yield Figure("a small account's time alone", alone.seconds, "s")


def _workers(stage: Stage) -> list[Contender]:
    input_, options = stage.chats(20_000), Options(latency=0.12)
    return [
        stage.ours(input_, options, Shape(1, PER_PROCESS), name=ONE),
        stage.ours(input_, options, Shape(2, 2 * PER_PROCESS), name=TWO),
    ]


def _read_workers(results: Results) -> Iterator[Figure]:
    one, two = found(results, ONE), found(results, TWO)
    if one and two:
        yield Figure(
            "throughput of two worker processes against one, 256 in flight each",
            two.rate / one.rate,
            target=at_least(1.8),
        )


SCENARIOS = [
    Scenario(
        "tenants",
        "20 accounts with 50 lines beside one with 100,000, at 30 ms",
        _tenants,
        _read_tenants,
        runs=1,
    ),
    Scenario(
        "workers",
        "20,000 lines at 120 ms with one worker process and with two",
        _workers,
        _read_workers,
        runs=1,
    ),
]
