"""A real llama.cpp server: the savings of prefix order where slots cache their last prompt."""

import http.client
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from benchmarks import lines, system
from benchmarks.lines import Input
from benchmarks.llama import process
from benchmarks.samples import Contender, Figure, Sample, at_most
from benchmarks.scenarios.scenario import Results, Scenario, found
from benchmarks.stage import Stage
from benchmarks.system import Shape
from benchmarks.verification import check_counts, expect

OURS, LOOP = "xalen-batch, ordered by prefix", "a loop, in the file's order"
LINES, LINES_PER_PREFIX, IN_FLIGHT = 400, 10, 4


def _contenders(stage: Stage) -> list[Contender]:
    count = stage.scaled(LINES)
    input_ = lines.shared_prefixes(stage.folder, count, max(2, count // LINES_PER_PREFIX))
    return [
        Contender(OURS, lambda: _ours(stage, input_)),
        Contender(LOOP, lambda: _loop(stage, input_)),
    ]


def _ours(stage: Stage, input_: Input) -> Sample:
    with (
        process.running(stage.say) as server,
        system.running(Shape(in_flight=IN_FLIGHT), server) as ours,
        ours.client() as client,
    ):
        started = time.perf_counter()
        batch = client.wait(client.create(client.upload(input_.path), input_.endpoint))
        seconds = time.perf_counter() - started
    check_counts(batch, input_.lines)
    usage = batch["usage"]
    return _sample(
        input_, seconds, usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"]
    )


def _loop(stage: Stage, input_: Input) -> Sample:
    with process.running(stage.say) as server, ThreadPoolExecutor(IN_FLIGHT) as pool:
        bodies = lines.bodies(input_.path, 0, input_.lines)
        started = time.perf_counter()
        usages = list(pool.map(lambda body: _ask(server, body), bodies))
        seconds = time.perf_counter() - started
    return _sample(
        input_, seconds, sum(read for read, _ in usages), sum(cached for _, cached in usages)
    )


def _ask(server: str, body: bytes) -> tuple[int, int]:
    """Tokens of the prompt, and how many of them came from the cache."""
    url = urlsplit(server)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=600)
    try:
        connection.request(
            "POST", f"{url.path}/chat/completions", body, {"content-type": "application/json"}
        )
        answer = connection.getresponse()
        said = answer.read()
    finally:
        connection.close()
    expect(answer.status == 200, f"the llama.cpp server answered {answer.status}: {said[:200]!r}")
    usage = json.loads(said)["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def _sample(input_: Input, seconds: float, read: int, cached: int) -> Sample:
    return Sample(
        input_.lines,
        seconds,
        more={"computed_tokens": float(read - cached), "cached_share": round(cached / read, 4)},
    )


def _read(results: Results) -> Iterator[Figure]:
    ours, loop = found(results, OURS), found(results, LOOP)
    if ours and loop:
        ratio = ours.more("computed_tokens") / loop.more("computed_tokens")
        yield Figure("prompt tokens computed, against the file's order", ratio, target=at_most(0.5))
        yield Figure("share of prompt tokens from the cache", ours.more("cached_share"), "")
        yield Figure("the same in the file's order", loop.more("cached_share"), "")


SCENARIOS = [
    Scenario(
        "llama",
        "400 lines with 40 long beginnings, mixed, on a llama.cpp server with 4 slots",
        _contenders,
        _read,
        runs=1,
        is_default=False,
    )
]
