"""Sign-off: fixes the hashes of a month's books, and later shows that nothing has changed.

The triggers of the tables refuse invoices, statements and credit notes of a month that is signed
off, so what comes late lands in an open month or is refused (docs/decisions/0079).
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from xalen_batch import db, ids, log
from xalen_batch.billing import books
from xalen_batch.billing.book_files import FORMAT, MANIFEST
from xalen_batch.billing.books import START, Section
from xalen_batch.config import settings
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import SignOff

logger = log.get(__name__)

# Key of the advisory lock that the triggers of late rows share (migration 0036).
LOCK = 7261970
# After the end of a month, as for its statements: transactions that were open then have ended.
PAUSE = timedelta(hours=1)
# The section whose rows may be forgotten.
AUDIT = "audit"


class Differing(NamedTuple):
    """A part of a month's books that is not as it was signed off. `what`: a section, or a head."""

    month: date
    what: str
    expected: str
    found: str


# Accounts and modes with something in the month that is on no statement.
_UNSTATED = text("""
    SELECT count(*) FROM (
        (
            SELECT account_id, livemode FROM invoices
            WHERE batch_id IS NOT NULL AND issued_at >= :month
                AND issued_at < CAST(:month AS timestamptz) + interval '1 month'
            UNION
            SELECT account_id, livemode FROM credit_notes
            WHERE created_at >= :month
                AND created_at < CAST(:month AS timestamptz) + interval '1 month'
        )
        EXCEPT
        SELECT account_id, livemode FROM invoices WHERE month = CAST(:month AS date)
    ) AS missing
""")


def sign_off(session: Session, month: date) -> SignOff:
    """Sign off a month, given by its first day (UTC). Idempotent for the month signed off last.

    Raises InvalidRequest unless the month is over, is the one behind the last that was signed off,
    and has all of its statements.
    """
    db.lift_timeouts(session)
    session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    last = session.scalars(select(SignOff).order_by(SignOff.month.desc()).limit(1)).one_or_none()
    if last is not None and last.month == month:
        return last
    _refuse_unless_next(month, None if last is None else last.month)
    now = db.now(session)
    if now < _end(month) + PAUSE:
        raise InvalidRequest(
            f"{month:%Y-%m} can be signed off from {_end(month) + PAUSE:%Y-%m-%d %H:%M} UTC on.",
            param="month",
        )
    if missing := session.execute(_UNSTATED, {"month": _start(month)}).scalar_one():
        raise InvalidRequest(
            f"{missing} statements of {month:%Y-%m} are not issued yet. A worker issues them within"
            " minutes: try again then.",
            param="month",
        )
    found = _sections(session, month)
    previous = START if last is None else bytes.fromhex(last.head)
    made = SignOff(
        id=ids.new(),
        month=month,
        previous=previous.hex(),
        head=books.month_head(previous, month, list(found.values())).hex(),
        sections=_shown(found),
    )
    session.add(made)
    session.flush()
    session.refresh(made)
    logger.info("month.signed_off", month=f"{month:%Y-%m}", head=made.head)
    return made


def signed_off(session: Session) -> list[SignOff]:
    """All sign-offs, the oldest first."""
    return list(session.scalars(select(SignOff).order_by(SignOff.month)))


def find(session: Session, month: date) -> SignOff:
    """The sign-off of a month. Raises InvalidRequest if there is none."""
    found = session.scalars(select(SignOff).where(SignOff.month == month)).one_or_none()
    if found is None:
        raise InvalidRequest(f"{month:%Y-%m} is not signed off.", param="month")
    return found


def verify(session: Session, signed: SignOff) -> Iterator[Differing]:
    """Compare the books of a month with its sign-off, and that with the one before.

    The audit log is compared while all of its entries are kept.
    """
    yield from _verify_head(session, signed)
    for name, section in _sections(session, signed.month, _kept(session, signed)).items():
        expected = _text(signed.sections[name])
        if expected != _text(_shown({name: section})[name]):
            yield Differing(signed.month, name, expected, _text(_shown({name: section})[name]))


def export(session: Session, signed: SignOff, folder: Path) -> Path:
    """Write the books of a month as JSONL, a file for each section, with a manifest; its path.

    `folder` must not exist, or be empty. `book_files.verify`, or a few lines of any
    language (docs/billing.md), verify the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise InvalidRequest(f"{folder} is not empty. Name another folder.", param="folder")
    for name, lines in books.sections(session, signed.month).items():
        with (folder / f"{name}.jsonl").open("wb") as out:
            for line in lines:
                out.write(line + b"\n")
    path = folder / MANIFEST
    path.write_bytes(orjson.dumps(manifest(signed), option=orjson.OPT_INDENT_2))
    return path


def manifest(signed: SignOff) -> dict[str, Any]:
    """What is written beside the records: the hashes of the sign-off."""
    return {
        "format": FORMAT,
        "month": f"{signed.month:%Y-%m}",
        "previous": signed.previous,
        "sections": dict(signed.sections),
        "head": signed.head,
    }


def _verify_head(session: Session, signed: SignOff) -> Iterator[Differing]:
    before = session.scalars(
        select(SignOff).where(SignOff.month < signed.month).order_by(SignOff.month.desc()).limit(1)
    ).one_or_none()
    previous = START.hex() if before is None else before.head
    if previous != signed.previous:
        yield Differing(signed.month, "previous head", signed.previous, previous)
    parts = [Section(each["records"], bytes.fromhex(each["head"])) for each in _ordered(signed)]
    head = books.month_head(bytes.fromhex(signed.previous), signed.month, parts).hex()
    if head != signed.head:
        yield Differing(signed.month, "head", signed.head, head)


def _ordered(signed: SignOff) -> list[Mapping[str, Any]]:
    """The sections in their order, which JSON of the database does not keep."""
    return [signed.sections[name] for name in books.SECTIONS]


def _sections(session: Session, month: date, names: tuple[str, ...] = ()) -> dict[str, Section]:
    return {
        name: books.chain(lines)
        for name, lines in books.sections(session, month).items()
        if not names or name in names
    }


def _kept(session: Session, signed: SignOff) -> tuple[str, ...]:
    """The sections whose rows are all kept."""
    life = settings().audit_retention
    if life == "forever" or _start(signed.month) > db.now(session) - timedelta(seconds=life):
        return books.SECTIONS
    return tuple(name for name in books.SECTIONS if name != AUDIT)


def _shown(sections: Mapping[str, Section]) -> dict[str, Any]:
    return {
        name: {"records": each.records, "head": each.head.hex()} for name, each in sections.items()
    }


def _text(section: Mapping[str, Any]) -> str:
    return f"{section['records']} records, {section['head']}"


def _refuse_unless_next(month: date, last: date | None) -> None:
    if last is None:
        return
    following = _end(last).date()
    if month != following:
        raise InvalidRequest(
            f"{last:%Y-%m} was signed off last. The next month is {following:%Y-%m}.",
            param="month",
        )


def _start(month: date) -> datetime:
    return datetime(month.year, month.month, 1, tzinfo=UTC)


def _end(month: date) -> datetime:
    return (_start(month) + timedelta(days=32)).replace(day=1)
