"""Running input files through xalen-batch, from the upload to the invoice, and checking what came
of it.
"""

import time
from typing import Any

from benchmarks import consumption
from benchmarks.client import Client
from benchmarks.lines import Input
from benchmarks.mock.options import Options
from benchmarks.mock.process import Mock
from benchmarks.mock.server import Stats
from benchmarks.samples import Sample
from benchmarks.system import System
from benchmarks.verification import check_answered, check_counts, check_invoices, check_output

# Until so many lines have been answered the pipe can be full; behind that is the tail.
BODY_SHARE = 0.98
# Seconds from the first request in which adaptive concurrency looks for the limit of a backend.
FIRST_SECONDS = 3.0


def run(system: System, mock: Mock, input_: Input, options: Options, *, times: int = 1) -> Sample:
    """Upload a file and run `times` batches over it at once; the time is that from the upload to
    the last invoice.
    """
    mock.become(options)
    system.reset_peaks()
    with system.client() as client:
        before, started = system.cpu(), time.perf_counter()
        file_id = client.upload(input_.path)
        uploaded = time.perf_counter()
        created = [client.create(file_id, input_.endpoint) for _ in range(times)]
        validated = _wait_for_start(client, created[0])
        batches = [client.wait(batch_id) for batch_id in created]
        invoices = [client.invoice(batch_id) for batch_id in created]
        ended = time.perf_counter()
        cpu = consumption.used_since(before, system.cpu())
        stats = mock.stats()
        lines = input_.lines * times
        more = {
            "upload_seconds": uploaded - started,
            "validate_seconds": validated - uploaded,
            **service(stats),
        }
        _verify(client, system, batches, invoices, stats, input_)
    return Sample(
        lines,
        ended - started,
        cpu,
        system.peaks(),
        {name: round(value, 4) for name, value in more.items()},
    )


def service(stats: Stats) -> dict[str, float]:
    """What the mock server saw: its CPU a request, how many requests it had inside, and answers a
    second before the tail.
    """
    in_flight, rate = _before_tail(stats)
    return {
        "mock_cpu_us": stats.cpu_seconds / max(1, stats.requests) * 1e6,
        "mock_refused": float(stats.refused),
        "mock_refused_later": _refused_later(stats),
        "mock_max_in_flight": float(stats.max_in_flight),
        "mock_mean_in_flight": in_flight,
        "body_rate": rate,
    }


def _before_tail(stats: Stats) -> tuple[float, float]:
    """Mean requests in flight, and answers a second, from the first request until all but the last
    lines were answered.
    """
    inside = [entry for entry in stats.timeline if entry[2] <= BODY_SHARE * stats.answered]
    if len(inside) < 2 or stats.first_request is None:
        return 0.0, 0.0
    seconds, _, answered, busy, _ = inside[-1]
    length = max(1e-9, seconds - stats.first_request)
    return busy / length, answered / length


def _refused_later(stats: Stats) -> float:
    """Refusals an answer after the first seconds; 0 if all lines were answered in them."""
    begin = (stats.first_request or 0.0) + FIRST_SECONDS
    early = [entry for entry in stats.timeline if entry[0] <= begin]
    _, _, answered, _, refused = early[-1] if early else (0.0, 0, 0, 0.0, 0)
    return (stats.refused - refused) / max(1, stats.answered - answered)


def _wait_for_start(client: Client, batch_id: str) -> float:
    while client.batch(batch_id)["status"] == "validating":
        time.sleep(0.05)
    return time.perf_counter()


def _verify(
    client: Client,
    system: System,
    batches: list[dict[str, Any]],
    invoices: list[dict[str, Any]],
    stats: Stats,
    input_: Input,
) -> None:
    for batch in batches:
        check_counts(batch, input_.lines)
    check_answered(stats, input_.lines * len(batches))
    if not system.shape.is_recording:
        return
    check_invoices(invoices, stats, input_.endpoint)
    output = system.folder / "output.jsonl"
    for batch in (batches[0], batches[-1])[: len(batches)]:
        client.download(batch["output_file_id"], output)
        check_output(output, input_)
    output.unlink()
