"""Batches whose real input lines ended as a test says. The product itself reads and records them."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

from tests import factories
from xalen_batch import db
from xalen_batch.accounts.accounts import Owner
from xalen_batch.backends.contract import Answered, Refused
from xalen_batch.batches import batches
from xalen_batch.billing.charges import Tariff
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import Batch
from xalen_batch.pipeline import claim, finalize, record, seal, validate
from xalen_batch.states import BatchStatus, LineError, TaskState

BUSY = Refused(
    503, b'{"error":{"message":"busy","type":"server_error","param":null,"code":"busy"}}'
)
Ending = Answered | Refused | LineError


def answered(text: str = "yes") -> Answered:
    return Answered(200, b'{"text":"%b"}' % text.encode(), Usage(1_000, 500))


def submitted(
    lines: Sequence[dict[str, Any]] | bytes, caller: Owner | None = None, **columns: Any
) -> Batch:
    """A batch that has passed validation, and whose lines have not run."""
    with db.transaction() as session:
        caller = caller or factories.caller(session)
        file = factories.input_file(session, caller, lines)
        batch = factories.batch(session, caller, file, **columns)
    validate.run(batch.id)
    return again(batch.id)


def end(batch_id: UUID, endings: Mapping[str, Ending]) -> Batch:
    """Record how its lines end, by their custom ids; without an ending they do not run."""
    left: list[claim.Claim] = []
    while (held := claim.claim([], with_suspects=True)) is not None:
        rows = [
            row(held, line, endings[line.custom_id])
            for line in held.lines
            if held.batch_id == batch_id and line.custom_id in endings
        ]
        is_whole = len(rows) == len(held.lines)
        record.record(
            held.key, held.fence, rows, to=TaskState.DONE if is_whole else TaskState.RUNNING
        )
        if not is_whole:
            left.append(held)
    for held in left:
        record.record(held.key, held.fence, [], to=TaskState.PENDING)
    if any(held.batch_id == batch_id for held in left):
        with db.transaction() as session:
            batches.cancel(session, session.get_one(Batch, batch_id))
    finalize.run(batch_id)
    batch = again(batch_id)
    assert BatchStatus(batch.status).is_terminal
    return batch


def ended(
    endings: Mapping[str, Ending | None], caller: Owner | None = None, **columns: Any
) -> Batch:
    """An ended batch of chat lines with these custom ids; None: the line did not run."""
    batch = submitted([factories.chat_line(name) for name in endings], caller, **columns)
    assert batch.status == BatchStatus.IN_PROGRESS
    return end(batch.id, {name: how for name, how in endings.items() if how is not None})


def row(held: claim.Claim, line: claim.ClaimedLine, how: Ending) -> record.Row:
    name = record.LineRef(held.batch_id, line.line_no, held.model, line.custom_id)
    if isinstance(how, LineError):
        return record.unanswered(name, how, f"{how} at {line.custom_id}")
    tariff = held.tariff if isinstance(how, Answered) else Tariff({}, Decimal(0))
    return record.row(name, how, tariff)


def sealed(batch: Batch) -> Batch:
    """The batch once it is sealed."""
    seal.run()
    batch = again(batch.id)
    assert batch.sealed_at is not None
    return batch


def again(batch_id: UUID) -> Batch:
    with db.reading() as session:
        return session.get_one(Batch, batch_id)
