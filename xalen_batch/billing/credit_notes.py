"""Credit notes: what is given back of a batch's invoice, at most what was billed.

An invoice never changes. A credit note is a line of its own on the account's next statement
(docs/decisions/0077).
"""

import hashlib
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from xalen_batch import ids, log, money, paging
from xalen_batch.accounts.accounts import Owner
from xalen_batch.billing import invoices
from xalen_batch.errors import QUOTED_CHARS, InvalidRequest, NotFound
from xalen_batch.models import Batch, CreditNote
from xalen_batch.paging import Order, Page

logger = log.get(__name__)

ZERO, WHOLE = Decimal(0), Decimal(1)
# Most characters of a reason, and most digits of an amount or a share, in all and behind the point.
LONGEST_REASON = 500
MOST_DIGITS = 40
MOST_DECIMALS = 30


@money.exact
def create(
    session: Session,
    batch: Batch,
    *,
    reason: str,
    amount: Decimal | None = None,
    share: Decimal | None = None,
    key: str | None = None,
) -> CreditNote:
    """Give back an amount in USD, a share of the invoice's total, or all that is left of it.

    `reason`: one line. Idempotent: a batch has one credit note for a `key`, and without one for an
    amount or share and a reason; the existing one is returned. Raises NotFound for a batch without
    an invoice; InvalidRequest if more would be given back than was billed, or for a `key` that
    another amount or reason has.
    """
    _check(amount, share, reason)
    key = key or hashlib.sha256(f"{amount} {share} {reason}".encode()).hexdigest()
    # The lock makes concurrent credit notes of the batch wait for each other.
    session.execute(select(Batch.id).where(Batch.id == batch.id).with_for_update())
    found = session.scalars(
        select(CreditNote).where(CreditNote.batch_id == batch.id, CreditNote.key == key)
    ).one_or_none()
    billed = invoices.of_batch(session, batch).total
    if found is not None:
        _refuse_other(found, amount if share is None else share * billed, reason)
        return found
    left = billed - credited(session, batch.id)
    wanted = amount if amount is not None else left if share is None else share * billed
    if not 0 < wanted <= left:
        raise InvalidRequest(
            f"{_named(amount, share)}: {money.render(wanted)} USD cannot be credited. Of"
            f" {money.render(billed)} that {ids.render('batch', batch.id)} was billed,"
            f" {money.render(left)} is left to credit. Nothing was done.",
            param=_named(amount, share),
        )
    note = CreditNote(
        id=ids.new(),
        account_id=batch.account_id,
        livemode=batch.livemode,
        batch_id=batch.id,
        amount=wanted,
        share=share,
        reason=reason,
        key=key,
    )
    session.add(note)
    session.flush()
    session.refresh(note)
    logger.info("credit_note.created", batch_id=batch.id, amount=str(wanted))
    return note


def credited(session: Session, batch_id: UUID) -> Decimal:
    """The sum of a batch's credit notes, in USD."""
    return session.execute(
        select(func.coalesce(func.sum(CreditNote.amount), ZERO)).where(
            CreditNote.batch_id == batch_id
        )
    ).scalar_one()


def get(session: Session, owner: Owner, public_id: str) -> CreditNote:
    """A credit note of this owner. Raises NotFound."""
    id = ids.parse("cn", public_id)
    note = None
    if id is not None:
        note = session.scalars(
            select(CreditNote).where(
                CreditNote.id == id,
                CreditNote.account_id == owner.account_id,
                CreditNote.livemode == owner.livemode,
            )
        ).one_or_none()
    if note is None:
        raise NotFound(
            f"No such CreditNote object: {public_id[:QUOTED_CHARS]}", param="credit_note_id"
        )
    return note


def page(
    session: Session, owner: Owner, *, limit: int, order: Order = "desc", after: str | None = None
) -> Page[CreditNote]:
    """A page of the owner's credit notes, by creation. Raises InvalidRequest for a bad `after`."""
    rows = select(CreditNote).where(
        CreditNote.account_id == owner.account_id, CreditNote.livemode == owner.livemode
    )
    return paging.page(session, rows, CreditNote.id, "cn", limit=limit, order=order, after=after)


def of_batch(session: Session, batch_id: UUID) -> list[CreditNote]:
    """The credit notes of a batch, the oldest first."""
    return list(
        session.scalars(
            select(CreditNote).where(CreditNote.batch_id == batch_id).order_by(CreditNote.id)
        )
    )


def render(note: CreditNote) -> dict[str, Any]:
    """A credit note as the API shows it, with exact strings. `statement_id`: null until issued."""
    return {
        "id": ids.render("cn", note.id),
        "object": "credit_note",
        "livemode": note.livemode,
        "account_id": ids.render("acct", note.account_id),
        "batch_id": ids.render("batch", note.batch_id),
        "amount": money.render(note.amount),
        "share": None if note.share is None else f"{note.share:f}",
        "currency": money.CURRENCY,
        "reason": note.reason,
        "created_at": int(note.created_at.timestamp()),
        "statement_id": note.statement_id and ids.render("inv", note.statement_id),
    }


def _named(amount: Decimal | None, share: Decimal | None) -> str:
    return "amount" if amount is not None or share is None else "share"


def _check(amount: Decimal | None, share: Decimal | None, reason: str) -> None:
    if amount is not None and share is not None:
        raise InvalidRequest("amount, share: give one of them, or none for all.", param="amount")
    for name, value in (("amount", amount), ("share", share)):
        if value is None:
            continue
        digits = value.as_tuple()
        is_short = value.is_finite() and (
            len(digits.digits) <= MOST_DIGITS and -MOST_DECIMALS <= int(digits.exponent) <= 0
        )
        if not is_short or value <= 0 or (name == "share" and value > WHOLE):
            most = "above 0 and at most 1" if name == "share" else "above 0"
            raise InvalidRequest(
                f"{name}: write a decimal number {most}, with at most {MOST_DECIMALS} digits"
                " behind the point, such as 0.5.",
                param=name,
            )
    if not reason.strip() or len(reason) > LONGEST_REASON or not reason.isprintable():
        raise InvalidRequest(
            f"reason: write one line of 1 to {LONGEST_REASON} printable characters.",
            param="reason",
        )


def _refuse_other(note: CreditNote, amount: Decimal | None, reason: str) -> None:
    if note.reason != reason or (amount is not None and note.amount != amount):
        raise InvalidRequest(
            f"key: {ids.render('cn', note.id)} has this key, over {money.render(note.amount)} USD"
            f" for {note.reason!r}. Give another key for another credit note.",
            param="key",
        )
