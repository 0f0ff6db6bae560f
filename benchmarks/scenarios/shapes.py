"""Lines of other shapes: many small batches, long prompts, rankings, and the times around the run
of a batch.
"""

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median

from benchmarks import consumption, lines
from benchmarks.lines import Input
from benchmarks.mock.options import Options
from benchmarks.samples import Contender, Figure, Sample, at_most
from benchmarks.scenarios.scenario import Results, Scenario, found
from benchmarks.stage import Stage
from benchmarks.system import COMMAND, environment
from benchmarks.verification import check_answered, check_counts, check_invoices, expect

OURS = "xalen-batch"
SMALL_LINES = 20
CLIENTS = 4
FIRST_LINES = 10
FIRST_TIMES = 9


def _rate(results: Results) -> Iterator[Figure]:
    if ours := found(results, OURS):
        yield Figure("lines a second", ours.rate, "/s")
        yield Figure("CPU per line, all processes", ours.cpu_per_line, "µs")


def _small(stage: Stage) -> list[Contender]:
    number = max(4, int(500 * stage.scale))
    input_ = lines.chats(stage.folder, SMALL_LINES)

    def run() -> Sample:
        system, mock = stage.system(), stage.mock
        mock.become(Options())
        before, started = system.cpu(), time.perf_counter()

        def submit(count: int) -> list[str]:
            with system.client() as client:
                return [
                    client.create(client.upload(input_.path), input_.endpoint) for _ in range(count)
                ]

        with ThreadPoolExecutor(CLIENTS) as pool:
            shares = [number * (n + 1) // CLIENTS - number * n // CLIENTS for n in range(CLIENTS)]
            created = [batch_id for ids in pool.map(submit, shares) for batch_id in ids]
        submitted = time.perf_counter()
        with system.client() as client:
            # The last one first: by then most others have ended, and few are asked for twice.
            ended = [client.wait(batch_id) for batch_id in reversed(created)]
            seconds = time.perf_counter() - started
            cpu = consumption.used_since(before, system.cpu())
            for batch in ended:
                check_counts(batch, SMALL_LINES)
            stats = mock.stats()
            check_answered(stats, number * SMALL_LINES)
            check_invoices(
                [client.invoice(batch_id) for batch_id in created], stats, input_.endpoint
            )
        return Sample(
            number * SMALL_LINES,
            seconds,
            cpu,
            more={"submit_seconds": round(submitted - started, 3), "batches": float(number)},
        )

    return [Contender(OURS, run)]


def _read_small(results: Results) -> Iterator[Figure]:
    if ours := found(results, OURS):
        yield Figure(
            "batches a second, from the first upload to the last end",
            ours.more("batches") / ours.seconds,
            "/s",
        )
        yield Figure("CPU per batch, all processes", ours.cpu_per_line * SMALL_LINES / 1000, "ms")


def _long(stage: Stage) -> list[Contender]:
    input_, options = stage.chats(10_000, 10_000), Options(answer_bytes=2_000)
    return [
        stage.ours(input_, options),
        stage.reference(
            "aiohttp loop, 2 processes",
            "aiohttp_loop",
            input_,
            options,
            count=6_000,
            in_flight=512,
            processes=2,
        ),
    ]


def _rerank(stage: Stage) -> list[Contender]:
    return [stage.ours(lines.rankings(stage.folder, stage.scaled(5_000)), Options())]


def _first(stage: Stage) -> list[Contender]:
    input_ = lines.chats(stage.folder, FIRST_LINES)

    def run() -> Sample:
        system = stage.system()
        stage.mock.become(Options(latency=0.03))
        firsts: list[float] = []
        ends: list[float] = []
        with system.client() as client:
            for _ in range(FIRST_TIMES if stage.scale == 1 else 2):
                file_id = client.upload(input_.path)
                # The system is at rest again, and not in step with its own polls.
                time.sleep(1.0 + 0.1 * len(ends))
                started = time.perf_counter()
                batch_id = client.create(file_id, input_.endpoint)
                first = None
                while (batch := client.batch(batch_id))["status"] not in ("completed", "failed"):
                    if first is None and batch["request_counts"]["completed"]:
                        first = time.perf_counter() - started
                    time.sleep(0.005)
                ends.append(time.perf_counter() - started)
                firsts.append(first or ends[-1])
                check_counts(batch, FIRST_LINES)
        return Sample(
            FIRST_LINES,
            median(ends),
            more={
                "first_seconds": round(median(firsts), 4),
                "slowest_seconds": round(max(ends), 4),
            },
        )

    return [Contender(OURS, run)]


def _read_first(results: Results) -> Iterator[Figure]:
    if ours := found(results, OURS):
        yield Figure("create → first result, median", ours.more("first_seconds"), "s", at_most(0.5))
        yield Figure("create → completed, median", ours.seconds, "s")


def _checked(stage: Stage) -> list[Contender]:
    input_ = stage.chats(50_000)

    def estimate() -> Sample:
        system = stage.system()
        with system.client() as client:
            file_id = client.upload(input_.path)
            before, started = system.cpu(), time.perf_counter()
            said = client.ask("POST", "/v1/batches/estimate", {"input_file_id": file_id})
            seconds = time.perf_counter() - started
        expect(
            said["lines"] == input_.lines, f"{input_.lines} lines were estimated as {said['lines']}"
        )
        return Sample(input_.lines, seconds, consumption.used_since(before, system.cpu()))

    def validate(file: Input) -> Sample:
        started = time.perf_counter()
        subprocess.run(
            [COMMAND, "validate", str(file.path), "--json"],
            env=environment({}),
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return Sample(file.lines, time.perf_counter() - started)

    one = lines.chats(stage.folder, 1)
    return [
        Contender("estimate, through the API", estimate),
        Contender("validate, on the command line", partial(validate, input_)),
        Contender("validate of one line: the command's start", partial(validate, one)),
    ]


def _read_checked(results: Results) -> Iterator[Figure]:
    for measured in results.values():
        yield Figure(measured.name, measured.seconds, "s")


SCENARIOS = [
    Scenario("small-batches", "500 batches of 20 lines, four clients", _small, _read_small, runs=1),
    Scenario("long-prompts", "10,000 lines of 10 KB, answers of 2 KB", _long, _rate, runs=1),
    Scenario("rerank", "5,000 rankings of 100 documents each", _rerank, _rate, runs=1),
    Scenario(
        "first-result", "a batch of 10 lines on a system at rest", _first, _read_first, runs=1
    ),
    Scenario("estimate", "estimate and validate 50,000 lines", _checked, _read_checked, runs=1),
]
