"""The books of a month: a record for each row of its invoices, credit notes, statements and audit
log, and a hash chain over each of these sections.

A record is one line of JSON with sorted keys, without spaces, in UTF-8. A chain begins with 32 zero
bytes; each record's hash is SHA-256 of the hash before and the record. The head of a month is
SHA-256 of the head of the month before, the month as `2026-11`, and the last hashes of the sections
in their order (docs/decisions/0079). Columns are named here and not taken from the tables: a column
that is added later must not change the records of a month that is signed off.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import orjson
from sqlalchemy import RowMapping, TextClause, text
from sqlalchemy.orm import Session

# Rows that are read at a time, and invoices, each of which has some lines.
AT_ONCE = 5_000
INVOICES_AT_ONCE = 500
START = bytes(32)
SECTIONS = ("invoices", "credit_notes", "statements", "audit")


class Section(NamedTuple):
    """The number of a section's records, and the last hash of its chain."""

    records: int
    head: bytes


def record(kind: str, row: Mapping[Any, Any]) -> bytes:
    """A row as one line of canonical JSON, without the line end."""
    values = {name: _value(value) for name, value in row.items()}
    return orjson.dumps({"record": kind, **values}, option=orjson.OPT_SORT_KEYS)


def link(head: bytes, line: bytes) -> bytes:
    """The hash of a record behind the hash before it."""
    return hashlib.sha256(head + line).digest()


def chain(lines: Iterator[bytes], keep: Callable[[bytes], object] | None = None) -> Section:
    """The chain over records. `keep` gets each of them, such as to write it to a file."""
    number, head = 0, START
    for line in lines:
        number, head = number + 1, link(head, line)
        if keep is not None:
            keep(line)
    return Section(number, head)


def month_head(previous: bytes, month: date, sections: Sequence[Section]) -> bytes:
    """The head of a month, from that of the month before and its sections in their order."""
    parts = (previous, f"{month:%Y-%m}".encode(), *(section.head for section in sections))
    return hashlib.sha256(b"".join(parts)).digest()


def _value(value: Any) -> Any:
    match value:
        case Decimal():
            return f"{value:f}"
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="microseconds")
        case date() | UUID():
            return str(value)
        case _:
            return value


_INVOICE = (
    "id, account_id, livemode, batch_id, month, schedule_id, schedule_name, currency, total,"
    " issued_at"
)
_SPAN = ">= :month AND {0} < CAST(:month AS timestamptz) + interval '1 month'"
_OWNERS = text("""
    SELECT account.id AS account_id, mode.livemode
    FROM (SELECT id FROM accounts WHERE id > :after ORDER BY id LIMIT :most) AS account
    CROSS JOIN (VALUES (false), (true)) AS mode (livemode)
    ORDER BY account.id, mode.livemode
""")
_INVOICES = text(f"""
    SELECT {_INVOICE} FROM invoices
    WHERE account_id = :account_id AND livemode = :livemode AND batch_id IS NOT NULL
        AND issued_at {_SPAN.format("issued_at")}
        AND (issued_at, id) > (:at, :id)
    ORDER BY issued_at, id LIMIT :most
""")
_STATEMENT = text(f"""
    SELECT {_INVOICE} FROM invoices
    WHERE account_id = :account_id AND livemode = :livemode AND month = CAST(:month AS date)
""")
_LINES = text("""
    SELECT invoice_id, position, kind, description, model, component, quantity, unit_price, reason,
        answered_by, source_invoice_id, source_credit_id, amount
    FROM invoice_lines
    WHERE invoice_id = ANY(:ids) AND (invoice_id, position) > (:id, :position)
    ORDER BY invoice_id, position LIMIT :most
""")
_CREDIT_NOTES = text(f"""
    SELECT id, account_id, livemode, batch_id, amount, share, reason, key, created_at
    FROM credit_notes
    WHERE account_id = :account_id AND livemode = :livemode
        AND created_at {_SPAN.format("created_at")}
        AND (created_at, id) > (:at, :id)
    ORDER BY created_at, id LIMIT :most
""")
_AUDIT = text(f"""
    SELECT id, at, actor, action, object_id, account_id, livemode, before, after
    FROM audit_log
    WHERE at {_SPAN.format("at")} AND (at, id) > (:since, :id)
        AND split_part(action, '.', 1) IN ('invoice', 'credit_note', 'price', 'month')
    ORDER BY at, id LIMIT :most
""")
_FIRST = UUID(int=0)


def sections(session: Session, month: date) -> dict[str, Iterator[bytes]]:
    """The records of each section of a month, in the order of the sections.

    `month`: its first day, UTC. An invoice and a credit note belong to the month of their time, a
    statement to its month, an entry of the audit log about them or about prices to its time. Read
    them in one snapshot: the statements keep no more than AT_ONCE rows in memory.
    """
    return {
        "invoices": _invoices(session, month),
        "credit_notes": _credit_notes(session, month),
        "statements": _statements(session, month),
        "audit": _audit(session, month),
    }


def _start(month: date) -> datetime:
    return datetime(month.year, month.month, 1, tzinfo=UTC)


def _owners(session: Session) -> Iterator[dict[str, Any]]:
    after = _FIRST
    while rows := session.execute(_OWNERS, {"after": after, "most": AT_ONCE}).mappings().all():
        yield from map(dict, rows)
        after = rows[-1]["account_id"]


def _invoices(session: Session, month: date) -> Iterator[bytes]:
    """Each batch invoice of the month, and behind it its lines."""
    for owner in _owners(session):
        values = {**owner, "month": _start(month)}
        for page in _pages(session, _INVOICES, values, "issued_at", INVOICES_AT_ONCE):
            lines: dict[UUID, list[bytes]] = {}
            for line in _lines(session, [row["id"] for row in page]):
                lines.setdefault(line["invoice_id"], []).append(record("line", line))
            for row in page:
                yield record("invoice", row)
                yield from lines.get(row["id"], ())


def _statements(session: Session, month: date) -> Iterator[bytes]:
    """Each statement of the month, and behind it its lines."""
    for owner in _owners(session):
        for row in session.execute(_STATEMENT, {**owner, "month": _start(month)}).mappings():
            yield record("statement", row)
            yield from (record("line", line) for line in _lines(session, [row["id"]]))


def _lines(session: Session, invoices: Sequence[UUID]) -> Iterator[RowMapping]:
    id, position = _FIRST, 0
    while True:
        values = {"ids": invoices, "id": id, "position": position, "most": AT_ONCE}
        rows = session.execute(_LINES, values).mappings().all()
        yield from rows
        if len(rows) < AT_ONCE:
            return
        id, position = rows[-1]["invoice_id"], rows[-1]["position"]


def _credit_notes(session: Session, month: date) -> Iterator[bytes]:
    for owner in _owners(session):
        values = {**owner, "month": _start(month)}
        for page in _pages(session, _CREDIT_NOTES, values, "created_at", AT_ONCE):
            yield from (record("credit_note", row) for row in page)


def _pages(
    session: Session, statement: TextClause, values: Mapping[str, Any], column: str, most: int
) -> Iterator[Sequence[RowMapping]]:
    """Pages of rows by the time in a column, and their ids."""
    at, id = values["month"], _FIRST
    while True:
        key = {"at": at, "id": id, "most": most}
        rows = session.execute(statement, {**values, **key}).mappings().all()
        yield rows
        if len(rows) < most:
            return
        at, id = rows[-1][column], rows[-1]["id"]


def _audit(session: Session, month: date) -> Iterator[bytes]:
    since, id = _start(month), 0
    while True:
        values = {"month": _start(month), "since": since, "id": id, "most": AT_ONCE}
        rows = session.execute(_AUDIT, values).mappings().all()
        yield from (record("audit", row) for row in rows)
        if len(rows) < AT_ONCE:
            return
        since, id = rows[-1]["at"], rows[-1]["id"]
