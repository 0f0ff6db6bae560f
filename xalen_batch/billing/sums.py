"""Sums over the results of a batch, for its invoice: tokens, charges and requests not billed.

Every transaction that inserts results adds them to the sums of their task (`record.counts`), so the
end of a batch reads tasks instead of a million results. Results that a version without these sums
inserted are missing there; then the results themselves are summed (docs/decisions/0047).
"""

from collections.abc import Iterable
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Numeric, bindparam, case, cast, func, literal, select
from sqlalchemy.orm import Session

from xalen_batch import log, money
from xalen_batch.billing.charges import USAGE_COUNTED
from xalen_batch.models import Batch, Result, Task

logger = log.get(__name__)


class ModelSums(NamedTuple):
    """Sums over the results of one model; the model of skipped invalid lines is "".

    Tokens and charges are those of the lines that succeeded. `not_billed`: requests of the others
    by reason: their error code, or `http_` and the status of their refusal.
    """

    model: str
    charged: Decimal
    input_tokens: int
    # The cached part of the input tokens; `of_results` leaves out what was charged as other input
    # although the model has a price for cached input.
    cached_tokens: int
    output_tokens: int
    # The part of the tokens that xalen-batch counted.
    counted_input_tokens: int
    counted_output_tokens: int
    not_billed: dict[str, int]


def of_batch(session: Session, batch: Batch) -> list[ModelSums]:
    """The sums of an ended batch by model. Call it when each of its lines has a result."""
    kept = of_tasks(session, batch.id, lines=batch.total)
    if kept is None:
        logger.info("invoice.sums_missing", batch_id=batch.id)
        return of_results(session, batch.id)
    return kept


# Built once, since every batch runs it.
_OF_TASKS = (
    select(
        Task.model,
        func.sum(Task.summed),
        func.sum(Task.charged),
        func.sum(Task.input_tokens),
        func.sum(Task.cached_tokens),
        func.sum(Task.output_tokens),
        func.sum(Task.counted_input_tokens),
        func.sum(Task.counted_output_tokens),
        func.jsonb_agg(Task.not_billed).filter(Task.not_billed.is_not(None)),
    )
    .where(Task.batch_id == bindparam("batch_id"))
    .group_by(Task.model)
    .having(func.sum(Task.summed) > 0)
)


def of_tasks(session: Session, batch_id: UUID, *, lines: int) -> list[ModelSums] | None:
    """The sums that the tasks keep; None unless they contain exactly `lines` results."""
    rows = session.execute(_OF_TASKS, {"batch_id": batch_id}).all()
    if sum(row[1] for row in rows) != lines:
        return None
    return sorted(
        ModelSums(
            row[0],
            charged=row[2],
            input_tokens=int(row[3]),
            cached_tokens=int(row[4]),
            output_tokens=int(row[5]),
            counted_input_tokens=int(row[6]),
            counted_output_tokens=int(row[7]),
            not_billed=_merged(row[8] or ()),
        )
        for row in rows
    )


def charged_so_far(session: Session, batch_ids: Iterable[UUID]) -> dict[UUID, Decimal]:
    """The charges of the lines that have ended, by batch, from the sums of their tasks."""
    rows = session.execute(
        select(Task.batch_id, func.sum(Task.charged))
        .where(Task.batch_id.in_(list(batch_ids)))
        .group_by(Task.batch_id)
    )
    return {row[0]: row[1] for row in rows}


def _merged(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    merged: dict[str, int] = {}
    for count in counts:
        for reason, requests in count.items():
            merged[reason] = merged.get(reason, 0) + requests
    return merged


@money.exact
def of_results(session: Session, batch_id: UUID) -> list[ModelSums]:
    """The sums over the results themselves, in one pass."""
    is_counted = func.coalesce(Result.flag.contains(USAGE_COUNTED), False)
    reason = case(
        (Result.amount.is_not(None), None),
        (Result.error_code.is_not(None), Result.error_code),
        else_=func.concat(literal("http_"), Result.status_code),
    )
    each = (
        select(
            Result.model,
            reason.label("reason"),
            is_counted.label("is_counted"),
            Result.input_tokens,
            case((Result.cached_tokens == 0, 0), else_=_cached()).label("cached_tokens"),
            Result.output_tokens,
            func.coalesce(Result.amount, 0).label("amount"),
        )
        .join(Batch, Batch.id == Result.batch_id)
        .where(Result.batch_id == batch_id)
        .subquery()
        .c
    )
    kind = (each.model, each.reason, each.is_counted)
    rows = session.execute(
        select(
            *kind,
            func.count(),
            func.sum(each.input_tokens),
            func.sum(each.cached_tokens),
            func.sum(each.output_tokens),
            func.sum(each.amount),
        ).group_by(*kind)
    )
    found: dict[str, ModelSums] = {}
    for model, why, counted, requests, read, cached, written, charged in rows:
        sums = found.get(model, ModelSums(model, Decimal(0), 0, 0, 0, 0, 0, {}))
        if why is not None:
            sums.not_billed[why] = requests
            read = cached = written = 0
        found[model] = ModelSums(
            model,
            sums.charged + charged,
            sums.input_tokens + int(read),
            sums.cached_tokens + int(cached),
            sums.output_tokens + int(written),
            sums.counted_input_tokens + counted * int(read),
            sums.counted_output_tokens + counted * int(written),
            sums.not_billed,
        )
    return [found[model] for model in sorted(found)]


def _cached() -> ColumnElement[int]:
    """The cached tokens of a result, or 0 if they were charged as other input (decision 0055)."""
    price = Batch.price_snapshot[Result.model]

    def net(component: str) -> ColumnElement[Decimal]:
        listed = func.coalesce(cast(price[component].astext, Numeric), 0)
        return listed * literal(money.PER_MILLION) * (1 - Batch.discount_rate)

    by_price = (
        (Result.input_tokens - Result.cached_tokens) * net("input")
        + Result.cached_tokens * net("cached_input")
        + Result.output_tokens * net("output")
    )
    is_cheaper = price.has_key("cached_input")
    return case((is_cheaper & (Result.amount != by_price), 0), else_=Result.cached_tokens)
