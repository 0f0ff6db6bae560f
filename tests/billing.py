"""Batches whose lines have ended, for tests of billing. `record` itself writes the results."""

from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from tests import factories
from tests.factories import CHAT_MODEL
from xalen_batch import db
from xalen_batch.accounts.accounts import Caller
from xalen_batch.backends.contract import Answered, Refused
from xalen_batch.billing import statements
from xalen_batch.billing.charges import CACHED_INPUT, Tariff
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import Batch, Task
from xalen_batch.pipeline import finalize, record
from xalen_batch.states import BatchStatus, LineError, TaskState

REFUSED = Refused(
    400, b'{"error":{"message":"no","type":"invalid_request_error","param":null,"code":null}}'
)


class Ran(NamedTuple):
    """How a line ended.

    A `Usage`: with an answer, whose text does not matter; a `LineError`: without an answer.
    """

    outcome: Usage | Answered | Refused | LineError
    model: str = CHAT_MODEL


def running(
    session: Session,
    lines: Sequence[Ran],
    caller: Caller | None = None,
    *,
    livemode: bool = False,
    old: Collection[int] = (),
    **columns: Any,
) -> Batch:
    """A batch whose lines have all ended, before it is finalized.

    `old`: the numbers of lines that a worker of a version without `cached_input` charged.
    """
    caller = caller or factories.caller(session, livemode=livemode)
    batch = factories.batch(
        session,
        caller,
        factories.input_file(session, caller, b""),
        status=BatchStatus.IN_PROGRESS.value,
        total=len(lines),
        **columns,
    )
    for seq, model in enumerate(sorted({line.model for line in lines})):
        rows = [
            _row(batch, number, line, is_old=number in old)
            for number, line in enumerate(lines, start=1)
            if line.model == model
        ]
        session.add(
            Task(
                batch_id=batch.id,
                seq=seq,
                model=model,
                state=TaskState.DONE.value,
                lines=len(rows),
                line_index=b"",
                **record.counts(rows),
            )
        )
        session.flush()
        record.insert(session, rows)
    return batch


def _row(batch: Batch, number: int, line: Ran, *, is_old: bool) -> record.Row:
    price = dict(batch.price_snapshot.get(line.model, {}))
    if is_old:
        price.pop(CACHED_INPUT, None)
    name = record.LineRef(batch.id, number, line.model, f"line-{number}")
    match line.outcome:
        case Usage() | Answered() as outcome:
            answered = outcome if isinstance(outcome, Answered) else Answered(200, b"{}", outcome)
            return record.row(name, answered, Tariff(price, batch.discount_rate))
        case Refused() as refused:
            return record.row(name, refused, Tariff({}, Decimal(0)))
        case code:
            return record.unanswered(name, code, "why")


def ended(lines: Sequence[Ran], caller: Caller | None = None, **columns: Any) -> Batch:
    """A batch that has its invoice."""
    with db.transaction() as session:
        batch = running(session, lines, caller, **columns)
    finalize.run(batch.id)
    with db.transaction() as session:
        return session.get_one(Batch, batch.id)


def issue_due(session: Session) -> int:
    """Issue the next statement of every account that has one due; return their number."""
    return sum(statements.issue(session, due) for due in statements.due(session))
