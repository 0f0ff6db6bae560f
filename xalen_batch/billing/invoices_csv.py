"""Batch invoices and credit notes as CSV: of one account and mode, or of all, over some months."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, text

from xalen_batch import csv_rows, db, ids, money
from xalen_batch.accounts.accounts import Owner
from xalen_batch.errors import InvalidRequest

# Invoices of a piece, which has less than MiB, and accounts that are looked up at a time.
PIECE_ROWS = 1_000
ACCOUNTS_AT_ONCE = 1_000
FIRST = (datetime.min.replace(tzinfo=UTC), UUID(int=0))
COLUMNS = (
    "kind",
    "id",
    "batch_id",
    "issued_at",
    "mode",
    "schedule",
    "model",
    "endpoint",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "subtotal",
    "discount",
    "total",
    "currency",
    "reason",
)
OWNER_COLUMNS = ("account_id", "account")

# Accounts and modes, and whether they have something in the span: two index look-ups for each.
_OWNERS = text("""
    SELECT account.id, account.name, mode.livemode, invoice.is_there
    FROM (
        SELECT id, name FROM accounts WHERE name > :after ORDER BY name LIMIT :most
    ) AS account
    CROSS JOIN (VALUES (false), (true)) AS mode (livemode)
    CROSS JOIN LATERAL (
        SELECT EXISTS (
            SELECT FROM credit_notes
            WHERE account_id = account.id AND livemode = mode.livemode
                AND created_at >= :first
                AND created_at < CAST(:last AS timestamptz) + interval '1 month'
        ) OR EXISTS (
            SELECT FROM invoices
            WHERE account_id = account.id AND livemode = mode.livemode
                AND issued_at >= :first
                AND issued_at < CAST(:last AS timestamptz) + interval '1 month'
                AND batch_id IS NOT NULL
        ) AS is_there
    ) AS invoice
    ORDER BY account.name, mode.livemode
""")
_INVOICES = text("""
    SELECT 'invoice' AS kind, 'inv' AS prefix, invoice.id, invoice.batch_id, invoice.issued_at,
        invoice.schedule_name, invoice.total, '' AS reason, batch.model, batch.endpoint,
        batch.metadata, line.*
    FROM invoices AS invoice
    JOIN batches AS batch ON batch.id = invoice.batch_id
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(amount) FILTER (WHERE kind = 'usage'), 0) AS subtotal,
            coalesce(sum(amount) FILTER (WHERE kind = 'discount'), 0) AS discount,
            coalesce(sum(quantity) FILTER (WHERE component = 'input'), 0) AS input,
            coalesce(sum(quantity) FILTER (WHERE component = 'cached_input'), 0) AS cached_input,
            coalesce(sum(quantity) FILTER (WHERE component = 'output'), 0) AS output
        FROM invoice_lines WHERE invoice_id = invoice.id
    ) AS line
    WHERE invoice.account_id = :account_id AND invoice.livemode = :livemode
        AND invoice.batch_id IS NOT NULL
        AND invoice.issued_at >= :first
        AND invoice.issued_at < CAST(:last AS timestamptz) + interval '1 month'
        AND (invoice.issued_at, invoice.id) > (:issued_at, :id)
    ORDER BY invoice.issued_at, invoice.id
    LIMIT :most
""")

# Negative, so that the totals sum to those of statements.
_CREDIT_NOTES = text("""
    SELECT 'credit_note' AS kind, 'cn' AS prefix, note.id, note.batch_id,
        note.created_at AS issued_at, NULL AS schedule_name, -note.amount AS total, note.reason,
        batch.model, batch.endpoint, batch.metadata, -note.amount AS subtotal, 0 AS discount,
        0 AS input, 0 AS cached_input, 0 AS output
    FROM credit_notes AS note
    JOIN batches AS batch ON batch.id = note.batch_id
    WHERE note.account_id = :account_id AND note.livemode = :livemode
        AND note.created_at >= :first
        AND note.created_at < CAST(:last AS timestamptz) + interval '1 month'
        AND (note.created_at, note.id) > (:issued_at, :id)
    ORDER BY note.created_at, note.id
    LIMIT :most
""")


def of_account(
    owner: Owner, first: date, last: date, *, metadata: Sequence[str] = ()
) -> Iterator[bytes]:
    """The batch invoices of an account and mode in the months `first` to `last`, by time of issue;
    then their credit notes, whose amounts are negative.

    `first`, `last`: first days of months, UTC. `metadata`: keys of the batches' metadata, each of
    which becomes a column. Each piece is one statement, so neither memory nor a transaction grows
    with the number of invoices. Raises InvalidRequest if `last` is before `first`.
    """
    span = _span(first, last)
    return _of_account(owner, span, metadata)


def of_all(month: date, *, metadata: Sequence[str] = ()) -> Iterator[bytes]:
    """The batch invoices and credit notes of a month of all accounts, by account and mode.

    Each row begins with the account's id and name; the other columns are those of `of_account`.
    """
    span = _span(month, month)
    yield csv_rows.render([(*OWNER_COLUMNS, *_header(metadata))])
    after = ""
    while accounts := _accounts(after, span):
        after = accounts[-1].name
        for account in accounts:
            if account.is_there:
                owner = Owner(account.id, account.livemode)
                first = (ids.render("acct", account.id), csv_rows.text(account.name))
                for rows in _rows(owner, span, metadata):
                    yield csv_rows.render([(*first, *row) for row in rows])


def _of_account(
    owner: Owner, span: Mapping[str, datetime], metadata: Sequence[str]
) -> Iterator[bytes]:
    yield csv_rows.render([_header(metadata)])
    for rows in _rows(owner, span, metadata):
        yield csv_rows.render(rows)


def _span(first: date, last: date) -> dict[str, datetime]:
    if last < first:
        raise InvalidRequest(
            f"to: {last:%Y-%m} is before {first:%Y-%m}. Send a later month, or the same.",
            param="to",
        )
    # PostgreSQL computes the end of the last month: Python's calendar ends with the year 9999.
    return {
        name: datetime(month.year, month.month, 1, tzinfo=UTC)
        for name, month in (("first", first), ("last", last))
    }


def _header(metadata: Sequence[str]) -> list[str]:
    return [*COLUMNS, *(f"metadata.{key}" for key in metadata)]


def _accounts(after: str, span: Mapping[str, datetime]) -> Sequence[Any]:
    with db.reading() as session:
        return session.execute(_OWNERS, {"after": after, "most": ACCOUNTS_AT_ONCE, **span}).all()


def _rows(
    owner: Owner, span: Mapping[str, datetime], metadata: Sequence[str]
) -> Iterator[list[list[str]]]:
    for statement in (_INVOICES, _CREDIT_NOTES):
        for page in _pages(statement, owner, span):
            yield [_row(owner, item, metadata) for item in page]


def _pages(
    statement: TextClause, owner: Owner, span: Mapping[str, datetime]
) -> Iterator[Sequence[Any]]:
    issued_at, id = FIRST
    values = {
        "account_id": owner.account_id,
        "livemode": owner.livemode,
        "most": PIECE_ROWS,
        **span,
    }
    while True:
        with db.reading() as session:
            found = session.execute(statement, values | {"issued_at": issued_at, "id": id}).all()
        if found:
            yield found
        if len(found) < PIECE_ROWS:
            return
        issued_at, id = found[-1].issued_at, found[-1].id


def _row(owner: Owner, invoice: Any, metadata: Sequence[str]) -> list[str]:
    return [
        invoice.kind,
        ids.render(invoice.prefix, invoice.id),
        ids.render("batch", invoice.batch_id),
        invoice.issued_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "live" if owner.livemode else "test",
        csv_rows.text(invoice.schedule_name),
        csv_rows.text(invoice.model),
        invoice.endpoint,
        *(
            f"{Decimal(tokens):f}"
            for tokens in (invoice.input, invoice.cached_input, invoice.output)
        ),
        *(
            money.render(Decimal(sum))
            for sum in (invoice.subtotal, invoice.discount, invoice.total)
        ),
        money.CURRENCY,
        csv_rows.text(invoice.reason),
        *(csv_rows.text(invoice.metadata.get(key)) for key in metadata),
    ]
