"""Where the time of validation goes: its steps one by one, each over the same file of 200 MB, on
one core.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from benchmarks.lines import CHAT, Input
from benchmarks.samples import Contender, Figure, Sample
from benchmarks.scenarios.scenario import Results, Scenario, cpu_ratio, found
from benchmarks.stage import Stage
from xalen_batch import catalog, memory
from xalen_batch.jsonl import Block, blocks, lines
from xalen_batch.storage import READ_CHUNK
from xalen_batch.validation import fast_path
from xalen_batch.validation import lines as scan
from xalen_batch.validation.lines import GoodLine
from xalen_batch.validation.prefix_order import PrefixHasher
from xalen_batch.validation.split import Split

LONGEST_LINE = 1 << 20
READ, CUT, DECODED, KEYS = (
    "reading",
    "and finding the lines",
    "and a typed decode",
    "and the look for doubled keys",
)
CHECKED, ALL, JSON = (
    "and all other checks",
    "all of it, the running order too",
    "json.loads of each line",
)


def _chunks(input_: Input) -> Iterator[bytes]:
    with input_.path.open("rb", buffering=0) as file:
        while chunk := file.read(READ_CHUNK):
            yield chunk


def _blocks(input_: Input) -> Iterator[Block]:
    return blocks(_chunks(input_), longest=LONGEST_LINE)


def _decoded(input_: Input) -> Iterator[Block]:
    for block in _blocks(input_):
        if block.data is not None:
            begin, end = block.ends
            fast_path.usual_lines(memoryview(block.data)[begin:end])
        yield block


def _with_keys(input_: Input) -> Iterator[object]:
    for block in _decoded(input_):
        if block.data is not None:
            yield fast_path.KEYS.findall(block.data, *block.ends)


def _parsed(input_: Input) -> Iterator[object]:
    return (
        json.loads(raw)
        for _, raw in lines(_chunks(input_), longest=LONGEST_LINE)
        if raw is not None
    )


def _checked(input_: Input) -> Iterator[GoodLine]:
    return (
        line
        for line in scan.scan(_chunks(input_), endpoint=CHAT, models=catalog.models())
        if isinstance(line, GoodLine)
    )


def _split(input_: Input) -> Iterator[object]:
    split, hasher = Split(), PrefixHasher()
    for line in _checked(input_):
        split.add(line.model, line.span, hasher.hashes(line.prompt))
    yield from split.slices()


def _contender(name: str, input_: Input, step: Callable[[Input], Iterable[object]]) -> Contender:
    def run() -> Sample:
        started, used = time.perf_counter(), time.process_time()
        deque(step(input_), maxlen=0)
        return Sample(
            input_.lines, time.perf_counter() - started, {"process-1": time.process_time() - used}
        )

    return Contender(name, run)


def _contenders(stage: Stage) -> list[Contender]:
    # As in a worker: how often Python looks for cycles would count among the steps.
    memory.settle()
    input_ = stage.chats(50_000, 4_000)
    steps: dict[str, Callable[[Input], Iterable[object]]] = {
        READ: _chunks,
        CUT: _blocks,
        DECODED: _decoded,
        KEYS: _with_keys,
        CHECKED: _checked,
        ALL: _split,
        JSON: _parsed,
    }
    return [_contender(name, input_, step) for name, step in steps.items()]


def _read(results: Results) -> Iterator[Figure]:
    yield from cpu_ratio(results, ALL, JSON)
    if ours := found(results, ALL):
        yield Figure("CPU per line", ours.cpu_per_line, "µs")


SCENARIOS = [
    Scenario(
        "validation",
        "the steps of validating 50,000 lines of 4 KB, on one core",
        _contenders,
        _read,
        is_default=False,
    )
]
