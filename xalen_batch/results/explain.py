"""Explain: what happened to one line: its request, its result, and how its amount was computed.

The line's number is found in the input file (`line_search.py`). With it, the result is one row, or
of a sealed batch an element of `sealed_lines` and a line that a binary search finds in an object.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple

import orjson
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from xalen_batch import db, files, ids, jsonl, money, storage
from xalen_batch.accounts.accounts import Owner
from xalen_batch.batches import batches, waits
from xalen_batch.billing.charges import CACHED_INPUT, USAGE_COUNTED, ZERO, Tariff
from xalen_batch.config import settings
from xalen_batch.endpoints.usage import Usage
from xalen_batch.errors import NotFound, quoted
from xalen_batch.models import Batch, Result, line_attempts
from xalen_batch.models.line_attempts import Attempt
from xalen_batch.results import content, line_search, merged
from xalen_batch.results.content import Stored
from xalen_batch.results.line_search import Found
from xalen_batch.states import UNRUN, BatchStatus
from xalen_batch.storage import marks

# Results of which one statement reads the custom ids, where the input file is gone.
STEP = 20_000


class Component(NamedTuple):
    """Tokens of one price component; `amount` at list price. Without a price both are None."""

    name: str
    tokens: int
    price: Decimal | None
    amount: Decimal | None


@dataclass(frozen=True, slots=True)
class Charge:
    """How a line's amount was computed: `amount` is `subtotal` less the discount.

    `components` and `subtotal` are None if they do not add up to the amount; `reconcile` reports
    such lines.
    """

    discount_rate: Decimal
    components: list[Component] | None
    subtotal: Decimal | None
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Ended:
    """The result of a line. `is_counted`: xalen-batch counted its tokens."""

    model: str
    status_code: int | None
    error_code: str | None
    usage: Usage
    is_counted: bool
    amount: Decimal | None

    @property
    def state(self) -> str:
        """`succeeded`, `failed`, `invalid`, `expired` or `cancelled`."""
        if self.amount is not None:
            return "succeeded"
        if self.error_code in UNRUN:
            return self.error_code.removeprefix("batch_")
        return "failed" if self.model else "invalid"


@dataclass(frozen=True, slots=True)
class Explained:
    """`request`: the input line; None if the file is gone. `ended`: None until the line has ended.

    `result`: the line of the output or error file; None if there is none, or it was deleted.
    `reason`: what its batch waits for, or why it ended; None if the line has ended, or may run now.
    `failed`: the number of failed attempts. `attempts`: the last of them, the oldest first.
    """

    batch: Batch
    number: int
    request: bytes | None
    ended: Ended | None
    result: bytes | None
    charge: Charge | None
    reason: str | None
    failed: int
    attempts: list[Attempt]


def of(owner: Owner, public_id: str, custom_id: str) -> Explained:
    """What is known of one line of an owner's batch. Raises NotFound.

    No session is held while the input file is searched, which may take seconds.
    """
    with db.reading() as session:
        batch = batches.get(session, owner, public_id)
    found = _find(batch, custom_id)
    with db.reading() as session:
        # Again: it may have been sealed meanwhile.
        batch = batches.get(session, owner, public_id)
        ended = _ended(session, batch, found.number)
        result = None if ended is None else _result(session, owner, batch, found.number, ended)
        reason = _reason(session, batch) if ended is None else None
        failed, attempts = line_attempts.of_line(session, batch.id, found.number)
    charge = None
    if ended is not None and ended.amount is not None:
        charge = charge_of(batch.price_snapshot.get(ended.model, {}), batch.discount_rate, ended)
    return Explained(
        batch, found.number, found.line or None, ended, result, charge, reason, failed, attempts
    )


def _reason(session: Session, batch: Batch) -> str | None:
    """Why a line without a result does not run: what its batch waits for, or why it failed."""
    if not BatchStatus(batch.status).is_terminal:
        wait = waits.of_one(session, batch)
        return None if wait is None else wait.message
    errors = batch.errors or []
    first = f": {errors[0]['message']}" if errors else "."
    more = f" ({len(errors) - 1:,} more errors in the batch's errors)" if len(errors) > 1 else ""
    return f"The batch is {batch.status}{first}{more}"


def _find(batch: Batch, custom_id: str) -> Found:
    """The line with its number; without its bytes if the input file is gone."""
    key = storage.key(batch.input_file_id)
    try:
        size = storage.size(key)
        chunks = partial(storage.chunks, key)
        found = line_search.by_custom_id(chunks, size, custom_id, longest=settings().max_line_bytes)
    except FileNotFoundError:
        marks.confirm_gone(key)
        found = _among_results(batch, custom_id)
    if found is None:
        raise NotFound(
            f"No line of {ids.render('batch', batch.id)} has the custom id {quoted(custom_id)}."
            " In a URL it has to be percent-encoded, slashes too.",
            param="custom_id",
        )
    return found


_NAMED = text("""
    SELECT max(line_no), min(line_no) FILTER (WHERE custom_id = :custom_id) FROM (
        SELECT line_no, custom_id FROM results
        WHERE batch_id = :batch_id AND line_no > :after ORDER BY line_no LIMIT :step
    ) AS line
""")


def _among_results(batch: Batch, custom_id: str) -> Found | None:
    """The number of the row with a custom id; rows are there until their partition is dropped."""
    after, values = 0, {"batch_id": batch.id, "custom_id": custom_id, "step": STEP}
    while "\0" not in custom_id:
        with db.reading() as session:
            last, number = session.execute(_NAMED, values | {"after": after}).one()
        if last is None or number is not None:
            return None if number is None else Found(number, b"")
        after = last
    return None


_SEALED = text("""
    SELECT models[at], status_codes[at], error_codes[at], flags[at], input_tokens[at],
        cached_tokens[at], output_tokens[at], reasoning_tokens[at], amounts[at], amounts IS NULL
    FROM (
        SELECT *, coalesce(array_position(line_nos, :number), :number - first_line + 1)::int AS at
        FROM sealed_lines WHERE batch_id = :batch_id AND first_line <= :number
        ORDER BY first_line DESC LIMIT 1
    ) AS part
    WHERE models[at] IS NOT NULL AND (line_nos IS NULL OR line_nos[at] = :number)
""")


def _ended(session: Session, batch: Batch, number: int) -> Ended | None:
    """The result from its row, or else from the columns of the sealed batch."""
    row = session.execute(
        select(
            Result.model,
            Result.status_code,
            Result.error_code,
            Result.flag,
            Result.input_tokens,
            Result.cached_tokens,
            Result.output_tokens,
            Result.reasoning_tokens,
            Result.amount,
        ).where(Result.batch_id == batch.id, Result.line_no == number)
    ).one_or_none()
    found: tuple[Any, ...] | None = None if row is None else (*row, False)
    if found is None:
        sealed = session.execute(_SEALED, {"batch_id": batch.id, "number": number}).one_or_none()
        found = None if sealed is None else tuple(sealed)
    if found is None:
        return None
    model, status, code, flag, read, cached, written, reasoning, amount, by_price = found
    is_counted = flag is not None and USAGE_COUNTED in flag
    usage = Usage(read, written, cached_tokens=cached, reasoning_tokens=reasoning)
    if by_price and status is not None and status < 300:
        # Amounts that follow from the prices are not kept (models/sealed_lines.py).
        price = batch.price_snapshot.get(model, {})
        amount = Tariff(price, batch.discount_rate).charge(usage).amount
    return Ended(model, status, code, usage, is_counted, amount)


def _result(
    session: Session, owner: Owner, batch: Batch, number: int, ended: Ended
) -> bytes | None:
    """The line of the output or error file, unless that was deleted or has expired."""
    file_id = batch.error_file_id if ended.amount is None else batch.output_file_id
    if file_id is None:
        return None if BatchStatus(batch.status).is_terminal else _rendered(session, batch, number)
    try:
        file = content.of(files.get(session, owner, ids.render("file", file_id)))
    except NotFound:
        return None
    if not isinstance(file, Stored):
        return _rendered(session, batch, number)
    return line_search.by_number(file.chunks, file.size, number, merged.number_of)


def _rendered(session: Session, batch: Batch, number: int) -> bytes | None:
    row = session.get(Result, (batch.id, number))
    if row is None or (row.body is None and row.status_code is not None):
        return None
    return jsonl.result_line(
        batch.id,
        number,
        row.custom_id,
        row.status_code,
        row.body,
        row.error_code,
        row.error_message,
        row.is_escaped,
    )


@money.exact
def charge_of(price: Mapping[str, str], rate: Decimal, ended: Ended) -> Charge:
    """The components of a line's charge by its batch's prices, each at list price, exactly."""
    amount = ended.amount or ZERO
    usage = ended.usage
    for cached in (usage.cached_tokens if CACHED_INPUT in price else 0, 0):
        # A version without a price of cached input charged all input alike (decision 0055).
        tokens = {
            "input": usage.input_tokens - cached,
            CACHED_INPUT: cached,
            "output": usage.output_tokens,
        }
        components = [
            _component(name, count, price.get(name)) for name, count in tokens.items() if count
        ]
        subtotal = sum((component.amount or ZERO for component in components), ZERO)
        if subtotal * (1 - rate) == amount:
            return Charge(rate, components, subtotal, amount)
    return Charge(rate, None, None, amount)


def _component(name: str, tokens: int, price: str | None) -> Component:
    if price is None:
        return Component(name, tokens, None, None)
    return Component(name, tokens, Decimal(price), tokens * Decimal(price) * money.PER_MILLION)


def parsed(line: bytes | None) -> Any:
    """The JSON value of a line; None without one, or if it is no JSON."""
    try:
        return None if line is None else orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
