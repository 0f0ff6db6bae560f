"""Retries: a new batch of the lines of an ended batch that failed (docs/decisions/0064).

Each line of a batch is in one retry at most, apart from retries that failed validation: so nothing
is billed twice by mistake, and the n-th line of a retry is the n-th of the lines that it took. The
first batch never changes.
"""

from collections.abc import Mapping, Sequence
from typing import cast
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from xalen_batch import files, ids
from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Owner
from xalen_batch.batches import batches
from xalen_batch.batches.batches import Retry
from xalen_batch.billing import invoices
from xalen_batch.endpoints.names import Endpoint
from xalen_batch.errors import QUOTED_CHARS, InvalidRequest, NotFound
from xalen_batch.files import Purpose
from xalen_batch.models import Batch
from xalen_batch.states import BatchStatus, OnInvalid
from xalen_batch.windows import ExecutionWindow

# Retries of one batch, with those of its retries: their results are read side by side.
MOST_RETRIES = 10
# Batches of a list of retries, with those that failed validation.
MOST_LISTED = 100


def create(
    session: Session,
    owner: Owner,
    public_id: str,
    *,
    codes: Sequence[str] | None = None,
    completion_window: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Batch:
    """Create a batch of the lines of an ended batch that failed, at the prices of now.

    `codes`: the reasons of the lines that are taken; None: all that no earlier retry took. What is
    not given is as in the first batch. Its validation writes the input file. Raises NotFound for an
    unknown batch, InvalidRequest, with the remedy, if nothing can be retried, and the errors of
    `batches.create`.
    """
    first = batches.get(session, owner, public_id, or_ledger=True)
    _refuse_unless_ended(first, public_id)
    # Under the account's lock two requests cannot take the same lines.
    quotas.lock(session, owner)
    taken = _choose(session, first, public_id, codes)
    try:
        # Locked until the commit; from then on the new batch keeps it from being deleted.
        files.lock(session, owner, ids.render("file", first.input_file_id))
    except NotFound:
        raise InvalidRequest(
            f"The input file of {public_id} was deleted or has expired, and its lines with it."
            " Upload the lines again and create a batch of them.",
            param="batch_id",
            code="input_file_gone",
        ) from None
    file = files.create(
        session,
        owner,
        id=ids.new(),
        purpose=Purpose.BATCH,
        filename=f"{public_id}_retry.jsonl",
        size=0,
        sha256=None,
    )
    hours = first.execution_window
    return batches.create(
        session,
        owner,
        input_file_id=ids.render("file", file.id),
        endpoint=cast(Endpoint, first.endpoint),
        completion_window=completion_window or first.completion_window,
        metadata=first.meta if metadata is None else metadata,
        output_expires_after=first.output_expires_after,
        execution_window=None if hours is None else ExecutionWindow.model_validate(hours),
        on_invalid=OnInvalid(first.on_invalid),
        retry=Retry(first.id, taken),
    )


def _refuse_unless_ended(batch: Batch, name: str) -> None:
    if batch.ledger is not None:
        message = f"{name} holds live calls. Send the calls that failed again."
    elif batch.call is not None:
        message = f"{name} is one queued call. Send the call again."
    elif batch.status == BatchStatus.FAILED:
        message = (
            f"{name} failed validation, so none of its lines ran. Correct the lines that its"
            " `errors` name and create a batch of them."
        )
    elif not BatchStatus(batch.status).is_terminal:
        message = (
            f"{name} is {batch.status}. Retry it when it has ended: lines that fail until then are"
            " taken too."
        )
        raise InvalidRequest(message, param="batch_id", code="batch_not_ended")
    else:
        return
    raise InvalidRequest(message, param="batch_id", code="batch_not_retryable")


def _choose(session: Session, first: Batch, name: str, codes: Sequence[str] | None) -> list[str]:
    """The reasons of the lines that a retry takes. InvalidRequest if it would have no line."""
    failed = _failed(session, first)
    if not failed:
        message = f"No line of {name} failed, so there is nothing to retry."
        if first.failed:
            message = (
                f"All lines of {name} that failed are invalid: {first.failed:,} were skipped by"
                " validation and would be again. Correct them and create a batch of them."
            )
        raise InvalidRequest(message, param="batch_id", code="nothing_to_retry")
    asked = sorted(failed) if codes is None else sorted(set(codes))
    for code in asked:
        if code not in failed:
            known = ", ".join(f"{reason} ({lines:,})" for reason, lines in sorted(failed.items()))
            raise InvalidRequest(
                f"codes: no line of {name} failed with {code[:QUOTED_CHARS]!r}. Its codes, with"
                f" their lines: {known}.",
                param="codes",
                code="nothing_to_retry",
            )
    taken_by = {
        code: retry for retry in _retries(session, first.id) for code in retry.retry_codes or ()
    }
    left = [code for code in asked if code not in taken_by]
    if (codes is None and not left) or (codes is not None and len(left) < len(asked)):
        again = next(taken_by[code] for code in asked if code in taken_by)
        retry = ids.render("batch", again.id)
        remedy = (
            f"Retry {retry} for the lines that failed again."
            if BatchStatus(again.status).is_terminal
            else f"It is {again.status}; when it has ended, retry {retry}."
        )
        raise InvalidRequest(
            f"{retry} has retried these lines of {name} already. {remedy}",
            param="batch_id",
            code="already_retried",
        )
    if len(family(session, first.id)) > MOST_RETRIES:
        raise InvalidRequest(
            f"{name} and its retries have been retried {MOST_RETRIES} times, the most there are."
            " Create a batch of the lines that are left.",
            param="batch_id",
            code="too_many_retries",
        )
    return left


def _failed(session: Session, batch: Batch) -> dict[str, int]:
    """{reason: lines} of an ended batch that ran without success, from its invoice."""
    return {
        str(line.reason): int(line.quantity or 0)
        for line in invoices.of_batch(session, batch).lines
        # Invalid lines have no model; tokens without a price are no lines, and have a component.
        if line.kind == "not_billed" and line.model is not None and line.component is None
    }


def _retries(session: Session, batch_id: UUID) -> Sequence[Batch]:
    """The retries of a batch, without retries of these, and without those that ran nothing."""
    found = select(Batch).where(Batch.retry_of == batch_id, Batch.status != BatchStatus.FAILED)
    return session.scalars(found.order_by(Batch.id)).all()


_BELOW = """
    below AS (
        {start}
        UNION ALL
        SELECT batches.id FROM below JOIN batches ON batches.retry_of = below.id
    )
"""
_OF_BATCH = text(f"""
    WITH RECURSIVE {_BELOW.format(start="SELECT CAST(:batch_id AS uuid) AS id")}
    SELECT id FROM below WHERE id <> :batch_id ORDER BY id LIMIT :most
""")
_FAMILY = text(f"""
    WITH RECURSIVE above AS (
        SELECT id, retry_of FROM batches WHERE id = :batch_id
        UNION ALL
        SELECT batches.id, batches.retry_of FROM above JOIN batches ON batches.id = above.retry_of
    ), {_BELOW.format(start="SELECT id FROM above WHERE retry_of IS NULL")}
    SELECT id FROM below JOIN batches USING (id) WHERE status <> 'failed'
""")


def family(session: Session, batch_id: UUID) -> Sequence[UUID]:
    """The first batch and all retries of it and of its retries, without those that ran nothing."""
    return session.scalars(_FAMILY, {"batch_id": batch_id}).all()


def of(session: Session, batch: Batch) -> Sequence[Batch]:
    """The retries of a batch and of its retries, the oldest first; at most MOST_LISTED."""
    found = session.scalars(_OF_BATCH, {"batch_id": batch.id, "most": MOST_LISTED}).all()
    if not found:
        return []
    return session.scalars(select(Batch).where(Batch.id.in_(found)).order_by(Batch.id)).all()
