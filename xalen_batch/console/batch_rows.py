"""Batches as pages show them: a name, a state in words, and a reason as a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

from sqlalchemy.orm import Session

from xalen_batch import files
from xalen_batch.accounts.accounts import Scope
from xalen_batch.accounts.sessions import Visitor
from xalen_batch.api import batches as api
from xalen_batch.api.schemas import BatchObject
from xalen_batch.batches.waits import Reason
from xalen_batch.billing import invoices, sums
from xalen_batch.console import words
from xalen_batch.models import Batch
from xalen_batch.states import TERMINAL, BatchStatus

# Reasons to wait that belong to the normal course of things.
USUAL = {Reason.EXECUTION_WINDOW, Reason.VALIDATION, Reason.RATE_LIMIT, Reason.TURN}
# States of which lines may still be stopped.
CANCELLABLE = {BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS}


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch in a list. `state`: a key of `words.STATES`. `cost`: so far, while it runs."""

    of: BatchObject
    name: str
    state: str
    why: str
    cost: Decimal | None

    @property
    def is_open(self) -> bool:
        return BatchStatus(self.of.status) not in TERMINAL

    @property
    def may_cancel(self) -> bool:
        return self.of.status in CANCELLABLE

    @property
    def may_retry(self) -> bool:
        counts = self.of.request_counts
        lost = counts.failed + counts.expired + counts.cancelled
        return not self.is_open and self.of.status != BatchStatus.FAILED and lost > 0

    @property
    def models(self) -> str:
        return self.of.model or "several models"


def rows(session: Session, visitor: Visitor, found: Sequence[Batch], now: int) -> list[BatchRow]:
    """The rows of batches, with costs if the key may see them.

    The number of statements does not grow with the batches.
    """
    if not found:
        return []
    names = files.names(session, {batch.input_file_id for batch in found})
    costs = _costs(session, found) if Scope.BILLING in visitor.caller.scopes else {}
    return [
        BatchRow(
            shown,
            names.get(batch.input_file_id) or shown.id,
            state_of(shown),
            reason(shown, now),
            costs.get(batch.id),
        )
        for batch, shown in zip(found, api.shown(session, found), strict=True)
    ]


def _costs(session: Session, found: Sequence[Batch]) -> dict[UUID, Decimal]:
    """What each batch cost by its invoice, or has cost so far; without those that ran nothing."""
    ended = [batch.id for batch in found if batch.status in TERMINAL]
    running = [
        batch.id
        for batch in found
        if batch.status not in TERMINAL and batch.status != BatchStatus.VALIDATING
    ]
    costs = invoices.totals(session, ended) if ended else {}
    return costs | (sums.charged_so_far(session, running) if running else {})


def state_of(batch: BatchObject) -> str:
    """`waiting` or `held` in place of a status that hides it."""
    if batch.waiting is None:
        return batch.status
    if batch.waiting.reason not in USUAL:
        return "held"
    return batch.status if batch.status == BatchStatus.VALIDATING else "waiting"


def reason(batch: BatchObject, now: int) -> str:
    """Why a batch is in its state, and until when, as a sentence."""
    if batch.waiting is not None:
        return batch.waiting.message
    counts = batch.request_counts
    kept = f"{words.plural(counts.completed, 'finished line')} kept and billed."
    match batch.status:
        case BatchStatus.VALIDATING:
            return "Its input file is being read."
        case BatchStatus.IN_PROGRESS:
            if batch.outlook is not None and batch.outlook.estimated_end is not None:
                return f"Ends about {words.clock(batch.outlook.estimated_end, now)}."
            return f"Has to end by {words.clock(batch.expires_at, now)}."
        case BatchStatus.FAILED:
            return _failure(batch)
        case BatchStatus.COMPLETED:
            return f"In {words.span((batch.completed_at or now) - batch.created_at)}."
        case BatchStatus.EXPIRED:
            return f"Its window of {batch.completion_window} passed; {kept}"
        case BatchStatus.CANCELLED:
            return f"Cancelled; {kept}"
        case BatchStatus.CANCELLING:
            return "Lines in flight end; no further line starts."
    return "Results are put together."


def _failure(batch: BatchObject) -> str:
    errors = [] if batch.errors is None else batch.errors.data
    if not errors:
        return "It failed validation; nothing ran."
    first = errors[0]
    if first.line is None:
        return f"{first.message} Nothing ran."
    return f"Lines are wrong; nothing ran. First: line {first.line:,}, {first.code}."
