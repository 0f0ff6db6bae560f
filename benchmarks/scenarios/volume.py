"""Much data: files of 200 MB in and out, and a million lines."""

import time
from collections.abc import Iterator
from typing import Any

from benchmarks import batches
from benchmarks.lines import Input
from benchmarks.mock.options import Options
from benchmarks.samples import Contender, Figure, Sample, at_least, at_most
from benchmarks.scenarios.scenario import Results, Scenario, found
from benchmarks.stage import Stage
from benchmarks.system import Shape
from benchmarks.verification import check_counts, check_output

OURS = "xalen-batch"
MB = 1_000_000
FEW, BATCH, MILLION = "1,000 lines", "50,000 lines", "1,000,000 lines"
# A system of its own, so that the peaks of memory are those of this run.
FRESH = Shape(settings=(("log_level", "info"),))


def _big(stage: Stage) -> list[Contender]:
    input_ = stage.chats(50_000, 4_000)

    def run() -> Sample:
        sample = batches.run(stage.system(), stage.mock, input_, Options())
        speed = input_.size / MB / sample.more["upload_seconds"]
        return Sample(
            sample.lines,
            sample.seconds,
            sample.cpu,
            sample.peaks,
            {**sample.more, "upload_mb_per_second": round(speed, 1)},
        )

    return [Contender(OURS, run)]


def _read_big(results: Results) -> Iterator[Figure]:
    if ours := found(results, OURS):
        yield Figure("from the upload to the invoice", ours.seconds, "s", at_most(8))
        yield Figure("upload", ours.more("upload_mb_per_second"), "MB/s", at_least(200))
        yield Figure(
            "validate and split, from the batch's creation",
            ours.more("validate_seconds"),
            "s",
            at_most(1.5),
        )


def _download(stage: Stage) -> list[Contender]:
    input_ = stage.chats(50_000)
    made: list[dict[str, Any]] = []

    def run() -> Sample:
        system = stage.system()
        path = stage.folder / "downloaded.jsonl"
        with system.client() as client:
            if not made:
                stage.mock.become(Options(answer_bytes=4_000))
                made.append(client.wait(client.create(client.upload(input_.path), input_.endpoint)))
                check_counts(made[0], input_.lines)
            before, started = system.cpu()["api"], time.perf_counter()
            size = client.download(made[0]["output_file_id"], path)
            seconds = time.perf_counter() - started
            used = system.cpu()["api"] - before
        check_output(path, input_)
        path.unlink()
        return Sample(
            input_.lines,
            seconds,
            {"api": round(used, 3)},
            more={"mb_per_second": round(size / MB / seconds, 1), "mb": round(size / MB, 1)},
        )

    return [Contender(OURS, run)]


def _read_download(results: Results) -> Iterator[Figure]:
    if ours := found(results, OURS):
        yield Figure(
            "download of an output file", ours.more("mb_per_second"), "MB/s", at_least(100)
        )
        yield Figure("its size", ours.more("mb"), "MB")


def _million(stage: Stage) -> list[Contender]:
    few, batch = stage.chats(1_000), stage.chats(50_000)

    def run(input_: Input, times: int = 1) -> Sample:
        # So that the few lines find its memory as small as it is after the start.
        system = stage.system(FRESH, has_read_large_files=False)
        return batches.run(system, stage.mock, input_, Options(), times=times)

    def run_again() -> Sample:
        run(batch, times=2)
        return run(batch)

    return [
        Contender(FEW, lambda: run(few), 1),
        Contender(BATCH, run_again, 1),
        Contender(MILLION, lambda: run(batch, times=20), 1),
    ]


def _read_million(results: Results) -> Iterator[Figure]:
    few, batch, million = (found(results, name) for name in (FEW, BATCH, MILLION))
    if few and batch and million:
        yield Figure(
            "CPU per line, a million against 50,000",
            million.cpu_per_line / batch.cpu_per_line,
            target=at_most(1.1),
        )
        yield Figure("throughput, a million against 50,000", million.rate / batch.rate)
        for role in ("api", "worker"):
            yield Figure(
                f"peak memory of {role}, growth from 1,000 lines",
                (million.peak(role) - few.peak(role)) / MB,
                "MB",
                at_most(50),
            )
            yield Figure(
                f"peak memory of {role}, a million lines",
                million.peak(role) / MB,
                "MB",
                at_most(250),
            )


SCENARIOS = [
    Scenario(
        "big-file", "50,000 lines of 4 KB, a file of 200 MB, no latency", _big, _read_big, runs=2
    ),
    Scenario("download", "an output file of 200 MB", _download, _read_download),
    Scenario(
        "million",
        "1,000,000 lines in 20 batches; memory from 1,000 lines on",
        _million,
        _read_million,
        runs=1,
        is_default=False,
    ),
]
