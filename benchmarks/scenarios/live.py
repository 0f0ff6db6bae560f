"""Live calls: what our layer adds to the model's own time, and how they fare beside a batch."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from statistics import median

from benchmarks import consumption, lines, live_calls
from benchmarks.client import Client
from benchmarks.live_calls import Answers
from benchmarks.mock.options import Options
from benchmarks.references import litellm_proxy
from benchmarks.samples import Contender, Figure, Measured, Sample, at_least, at_most
from benchmarks.scenarios.scenario import Results, Scenario, found
from benchmarks.stage import Stage
from benchmarks.system import Shape, System
from benchmarks.verification import expect

MODEL, OURS, LITELLM = "the model server alone", "xalen-batch", "LiteLLM's proxy"
RATE, SECONDS = 50, 15.0
STORES = ("postgres", "valkey")
MODEL_SERVER = Options(latency=0.12)
# With the usual rate limit of an account.
LAYER = Shape(workers=1, settings=(("quota_requests_per_second", "200"),))

ALONE, BATCH = "live calls alone", "batch alone"
BESIDE, RESERVED = "beside a batch", "beside a batch, live_reserve 4"
SLOTS, SLOT_SECONDS, LIVE_RATE = 32, 0.1, 40
# Further requests are refused.
FULL = Options(latency=SLOT_SECONDS, slots=SLOTS)
BATCH_LINES = 8_000
# Seconds after the start of a batch until it keeps the slots busy, and of the measurement.
SETTLING, MEASURED = 3.0, 12.0


def _layer(stage: Stage) -> list[Contender]:
    seconds = max(2.0, SECONDS * stage.scale)

    def direct() -> Sample:
        stage.mock.become(MODEL_SERVER)
        return _sample(live_calls.call(stage.mock.base_url, "none", RATE, seconds), seconds)

    def ours() -> Sample:
        system = stage.system(LAYER)
        stage.mock.become(MODEL_SERVER)
        _warm_up(f"{system.address}/v1", system.key)
        rest = _cpu_at_rest(system, seconds)
        before = system.cpu()
        answers = live_calls.call(f"{system.address}/v1", system.key, RATE, seconds)
        cpu = consumption.used_since(before, system.cpu())
        return _sample(
            answers, seconds, {role: used - rest[role] * seconds for role, used in cpu.items()}
        )

    def proxy() -> Sample:
        with litellm_proxy.running(stage.litellm_proxy(), stage.mock.base_url) as server:
            stage.mock.become(MODEL_SERVER)
            _warm_up(server.url, server.key)
            before = consumption.tree_cpu_seconds(server.pid)
            answers = live_calls.call(server.url, server.key, RATE, seconds)
            cpu = consumption.tree_cpu_seconds(server.pid) - before
            return _sample(answers, seconds, {"proxy": cpu})

    return [Contender(MODEL, direct), Contender(OURS, ours), Contender(LITELLM, proxy)]


def _warm_up(url: str, key: str) -> None:
    live_calls.call(url, key, RATE, 2.0)


def _cpu_at_rest(system: System, seconds: float) -> dict[str, float]:
    """CPU seconds in a second without calls, by process. The stores' is chance, and left out."""
    before = system.cpu()
    time.sleep(seconds)
    used = consumption.used_since(before, system.cpu())
    return {role: 0.0 if role in STORES else spent / seconds for role, spent in used.items()}


def _sample(answers: Answers, seconds: float, cpu: Mapping[str, float] | None = None) -> Sample:
    expect(not answers.failed, f"calls were refused: {answers.failed}")
    used = {role: round(spent, 3) for role, spent in (cpu or {}).items()}
    return Sample(len(answers.seconds), seconds, used, more=_times(answers))


def _times(answers: Answers) -> dict[str, float]:
    return {"median_ms": round(answers.median_ms, 2), "p95_ms": round(answers.p95_ms, 2)}


def _read_layer(results: Results) -> Iterator[Figure]:
    model, ours, proxy = (found(results, name) for name in (MODEL, OURS, LITELLM))
    for who, most_added, most_cpu in ((ours, at_most(3), at_most(1.5)), (proxy, None, None)):
        if model and who:
            added = f"{who.name}: added to the model's own time"
            yield Figure(
                f"{added}, median",
                who.more("median_ms") - model.more("median_ms"),
                "ms",
                most_added,
            )
            yield Figure(f"{added}, p95", who.more("p95_ms") - model.more("p95_ms"), "ms")
            cpu = _cpu_ms(who, lambda role: role not in STORES)
            yield Figure(f"{who.name}: CPU of its processes per call", cpu, "ms", most_cpu)
    if model and ours and proxy:
        own = model.more("median_ms")
        yield Figure(
            f"added time, median, against {LITELLM}",
            (ours.more("median_ms") - own) / (proxy.more("median_ms") - own),
        )
        yield Figure(
            f"CPU per call, all processes, against {LITELLM}",
            ours.cpu_per_line / proxy.cpu_per_line,
        )
    if ours:
        yield Figure(
            "CPU of PostgreSQL per call, with that at rest",
            _cpu_ms(ours, lambda role: role == "postgres"),
            "ms",
        )


def _cpu_ms(who: Measured, is_counted: Callable[[str], bool]) -> float:
    return median(
        sum(used for role, used in sample.cpu.items() if is_counted(role)) / sample.lines * 1e3
        for sample in who.samples
    )


def _beside(stage: Stage) -> list[Contender]:
    return [
        Contender(ALONE, lambda: _together(stage, 0, has_batch=False)),
        Contender(BATCH, lambda: _together(stage, 0, has_live=False)),
        Contender(BESIDE, lambda: _together(stage, 0)),
        Contender(RESERVED, lambda: _together(stage, 4)),
    ]


def _together(
    stage: Stage, reserve: int, *, has_batch: bool = True, has_live: bool = True
) -> Sample:
    """Live calls and a batch on one backend. `lines` are the answers of the model server."""
    system = stage.system(Shape(in_flight=SLOTS, live_reserve=reserve))
    seconds = max(3.0, MEASURED * stage.scale)
    url = f"{system.address}/v1"
    stage.mock.become(FULL)
    with system.client() as client, ExitStack() as after:
        if has_batch:
            input_ = lines.chats(stage.folder, BATCH_LINES)
            batch = client.create(client.upload(input_.path), input_.endpoint)
            after.callback(_end, client, batch)
            while stage.mock.stats().in_flight < SLOTS - reserve - 2:
                time.sleep(0.05)
            time.sleep(SETTLING)
        begun, before = stage.mock.stats(), system.cpu()
        answers = Answers([], {})
        if has_live:
            answers = live_calls.call(url, system.key, LIVE_RATE, seconds)
        else:
            time.sleep(seconds)
        ended = stage.mock.stats()
        cpu = consumption.used_since(before, system.cpu())
        expect(not has_batch or client.batch(batch)["status"] == "in_progress", "the batch ended")
    live = len(answers.seconds)
    of_batch = ended.answered - begun.answered - live
    more = {
        "live_rate": live / seconds,
        "line_rate": of_batch / seconds,
        "refused": float(ended.refused - begun.refused),
        "failed": float(sum(answers.failed.values())),
        **(_times(answers) if live else {}),
    }
    return Sample(
        of_batch + live, seconds, cpu, more={name: round(n, 2) for name, n in more.items()}
    )


def _end(client: Client, batch: str) -> None:
    client.ask("POST", f"/v1/batches/{batch}/cancel")
    client.wait(batch)


def _read_beside(results: Results) -> Iterator[Figure]:
    alone, batch = found(results, ALONE), found(results, BATCH)
    for name in (BESIDE, RESERVED):
        beside = results.get(name)
        if not (alone and batch and beside):
            continue
        yield Figure(
            f"live calls, p95, {name}, against alone",
            beside.more("p95_ms") / alone.more("p95_ms"),
            target=at_most(1.2),
        )
        yield Figure(
            f"live calls, median, {name}, against alone",
            beside.more("median_ms") / alone.more("median_ms"),
        )
        left = batch.more("line_rate") - beside.more("live_rate")
        yield Figure(
            f"lines a second, {name}, against what live calls leave of a batch alone",
            beside.more("line_rate") / left,
            target=at_least(0.9),
        )
        yield Figure(
            f"requests refused by the backend, {name}, per request",
            beside.more("refused") / beside.samples[0].lines,
            "",
        )
        yield Figure(f"live calls that failed, {name}", beside.more("failed"), "")


SCENARIOS = [
    Scenario(
        "live-calls",
        "50 live calls a second on a model server that takes 120 ms",
        _layer,
        _read_layer,
        is_default=False,
    ),
    Scenario(
        "live-and-batch",
        f"{LIVE_RATE} live calls a second and a batch on a backend with {SLOTS} slots of 100 ms",
        _beside,
        _read_beside,
        is_default=False,
    ),
]
