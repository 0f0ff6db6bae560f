"""The way of a batch from its creation to its invoice, as steps."""

from dataclasses import dataclass

from xalen_batch.api.schemas import BatchObject
from xalen_batch.console import words
from xalen_batch.states import BatchStatus


@dataclass(frozen=True, slots=True)
class Step:
    """One step. `kind`: `ok`, `run`, `bad` or `idle`. `at`: Unix seconds; None: not yet."""

    kind: str
    name: str
    at: int | None
    note: str


def steps(batch: BatchObject) -> list[Step]:
    """The steps of a batch, also those to come."""
    found = [Step("ok", "Created", batch.created_at, "prices frozen")]
    if batch.status == BatchStatus.FAILED:
        return [*found, Step("bad", "Failed validation", batch.failed_at, "nothing ran")]
    found.append(_validated(batch))
    found.append(_run(batch))
    found.append(_end(batch))
    return found


def _validated(batch: BatchObject) -> Step:
    if batch.in_progress_at is not None:
        took = words.span(batch.in_progress_at - batch.created_at)
        lines = words.plural(batch.request_counts.total, "line")
        return Step("ok", "Validated", batch.in_progress_at, f"{lines}, in {took}")
    if batch.status == BatchStatus.VALIDATING:
        return Step("run", "Validating", None, "the file is read")
    return Step("idle", "Not validated", None, "stopped before")


def _run(batch: BatchObject) -> Step:
    counts = batch.request_counts
    done = counts.completed + counts.failed
    ended = batch.finalizing_at or batch.cancelling_at
    if batch.in_progress_at is None:
        return Step("idle", "Run", None, "after validation")
    if ended is None:
        rate = batch.outlook.lines_per_second if batch.outlook else None
        pace = "" if rate is None else f", {rate:g} lines/s"
        return Step("run", "Running", None, f"{done:,} of {counts.total:,}{pace}")
    return Step("ok", "Ran", ended, f"{done:,} lines in {words.span(ended - batch.in_progress_at)}")


def _end(batch: BatchObject) -> Step:
    match batch.status:
        case BatchStatus.COMPLETED:
            return Step("ok", "Completed", batch.completed_at, "invoice issued")
        case BatchStatus.EXPIRED:
            return Step("bad", "Expired", batch.expired_at, "invoice issued")
        case BatchStatus.CANCELLED:
            return Step("idle", "Cancelled", batch.cancelled_at, "invoice issued")
        case BatchStatus.FINALIZING:
            return Step("run", "Finalizing", None, "results are put together")
        case BatchStatus.CANCELLING:
            return Step("run", "Cancelling", None, "lines in flight end")
    return Step("idle", "Results and invoice", None, "when the last line ends")
