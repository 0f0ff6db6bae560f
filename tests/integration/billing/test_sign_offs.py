"""A month that is signed off: any change of it is found, in the database and in exported files."""

import json
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from typer.testing import CliRunner

from tests import factories
from tests.conftest import as_owner
from tests.credit_notes import backdate, billed, credit
from tests.statements import IN_MARCH, MARCH, a_caller, an_invoice, issue_due, read
from xalen_batch import db
from xalen_batch.accounts.accounts import Caller
from xalen_batch.billing import book_files, sign_offs
from xalen_batch.cli.main import app
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import SignOff

pytestmark = pytest.mark.usefixtures("database", "valkey")
APRIL = date(2026, 4, 1)
IN_APRIL = datetime(2026, 4, 2, tzinfo=UTC)
ROOT = Path(__file__).parents[3]


@pytest.fixture
def books() -> SignOff:
    """March, with two accounts' invoices, a credit note and statements, signed off."""
    caller = a_caller()
    backdate(credit(billed(caller, "1.0000000001"), share=Decimal("0.5")))
    an_invoice(a_caller(livemode=False), "2")
    with as_owner() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(
            text(
                "INSERT INTO invoice_lines (invoice_id, position, kind, description, model, component,"
                " quantity, unit_price, reason, answered_by, amount) SELECT id, 1, 'usage', 'été', 'm',"
                " 'input', 1, 2, 'usage_counted', 'openai', total FROM invoices WHERE batch_id IS NOT NULL"
            )
        )
        # What happened in March was logged in March.
        session.execute(text("UPDATE audit_log SET at = '2026-03-16' WHERE action LIKE 'invoice%'"))
    assert issue_due() == 2
    return sign(MARCH)


def sign(month: date) -> SignOff:
    with db.transaction() as session:
        return sign_offs.sign_off(session, month)


def differing(signed: SignOff) -> set[str]:
    with db.snapshot() as session:
        return {found.what for found in sign_offs.verify(session, signed)}


def exported(signed: SignOff, folder: Path) -> Path:
    with db.snapshot() as session:
        sign_offs.export(session, signed, folder)
    return folder


def tamper(statement: str) -> None:
    with as_owner() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        assert session.execute(text(statement)).rowcount  # type: ignore[attr-defined]


OTHER = "'00000000-0000-7000-8000-000000000001'"
# (section, table, the rows of it, column, another value)
COLUMNS = [
    (
        "invoices",
        "invoices",
        "batch_id IS NOT NULL",
        "account_id",
        "(SELECT id FROM accounts WHERE id NOT IN (SELECT account_id FROM invoices) LIMIT 1)",
    ),
    ("invoices", "invoices", "batch_id IS NOT NULL", "livemode", "NOT livemode"),
    ("invoices", "invoices", "batch_id IS NOT NULL", "schedule_id", OTHER),
    ("invoices", "invoices", "batch_id IS NOT NULL", "schedule_name", "'x'"),
    ("invoices", "invoices", "batch_id IS NOT NULL", "currency", "'EUR'"),
    ("invoices", "invoices", "batch_id IS NOT NULL", "total", "total + 1e-10"),
    (
        "invoices",
        "invoices",
        "batch_id IS NOT NULL",
        "issued_at",
        "issued_at + interval '1 microsecond'",
    ),
    ("invoices", "invoices", "batch_id IS NOT NULL", "issued_at", "issued_at + interval '1 month'"),
    ("statements", "invoices", "month IS NOT NULL", "total", "total + 0.01"),
    ("statements", "invoices", "month IS NOT NULL", "month", "'2026-02-01'"),
    (
        "statements",
        "invoices",
        "month IS NOT NULL",
        "issued_at",
        "issued_at + interval '1 microsecond'",
    ),
    *(
        ("invoices", "invoice_lines", "kind = 'usage'", column, value)
        for column, value in (
            ("position", "2"),
            ("kind", "'not_billed'"),
            ("description", "'x'"),
            ("model", "'x'"),
            ("component", "'output'"),
            ("quantity", "2"),
            ("unit_price", "3"),
            ("reason", "'x'"),
            ("answered_by", "'simulated'"),
            ("amount", "amount + 1e-20"),
        )
    ),
    (
        "statements",
        "invoice_lines",
        "kind = 'batch' AND source_credit_id IS NULL",
        "source_invoice_id",
        "gen_random_uuid()",
    ),
    ("statements", "invoice_lines", "source_credit_id IS NOT NULL", "source_credit_id", OTHER),
    ("statements", "invoice_lines", "kind = 'rounding'", "amount", "amount + 1"),
    *(
        ("credit_notes", "credit_notes", "true", column, value)
        for column, value in (
            ("amount", "amount - 1e-10"),
            ("share", "0.6"),
            ("reason", "'x'"),
            ("key", "'x'"),
            ("created_at", "created_at - interval '1 microsecond'"),
        )
    ),
    *(
        ("audit", "audit_log", "at < '2026-04-01'", column, value)
        for column, value in (
            ("actor", "'x'"),
            ("action", "'invoice.deleted'"),
            ("object_id", "'x'"),
            ("account_id", OTHER),
            ("livemode", "NOT livemode"),
            ("before", "'{}'"),
            ("after", "'{}'"),
            ("at", "at + interval '1 microsecond'"),
        )
    ),
]


class TestDatabase:
    def test_nothing_has_changed(self, books: SignOff) -> None:
        assert differing(books) == set()
        assert {name: each["records"] for name, each in books.sections.items()} == {
            "invoices": 4,
            "credit_notes": 1,
            "statements": 7,
            "audit": 2,
        }
        assert (books.previous, sign(MARCH).id) == ("00" * 32, books.id)

    def test_each_changed_field_is_found(self, books: SignOff) -> None:
        with db.transaction() as session:
            factories.account(session)
        for section, table, rows, column, value in COLUMNS:
            key = "id" if table != "invoice_lines" else "invoice_id, position"
            statement = (
                f"UPDATE {table} SET {column} = {value} WHERE ({key}) ="
                f" (SELECT {key} FROM {table} WHERE {rows} ORDER BY 1 LIMIT 1)"
            )
            with as_owner() as session:
                session.execute(text("SET LOCAL session_replication_role = replica"))
                assert session.execute(text(statement)).rowcount == 1, statement  # type: ignore[attr-defined]
                found = {found.what for found in sign_offs.verify(session, books)}
                session.rollback()
            assert section in found, statement
        assert differing(books) == set()

    @pytest.mark.parametrize(
        ("section", "table", "rows"),
        [
            ("invoices", "invoices", "batch_id IS NOT NULL"),
            ("invoices", "invoice_lines", "kind = 'usage'"),
            ("statements", "invoices", "month IS NOT NULL"),
            ("statements", "invoice_lines", "kind = 'rounding'"),
            ("credit_notes", "credit_notes", "true"),
            ("audit", "audit_log", "at < '2026-04-01'"),
        ],
    )
    def test_a_deleted_row_is_found(
        self, books: SignOff, section: str, table: str, rows: str
    ) -> None:
        tamper(f"DELETE FROM {table} WHERE ctid = (SELECT ctid FROM {table} WHERE {rows} LIMIT 1)")
        assert differing(books) == {section}

    def test_an_added_row_is_found(self, books: SignOff) -> None:
        tamper(
            "INSERT INTO invoice_lines (invoice_id, position, kind, description, amount) SELECT id,"
            " 99, 'usage', 'x', 0 FROM invoices WHERE month IS NULL LIMIT 1"
        )
        tamper(
            "INSERT INTO audit_log (at, actor, action, object_id) VALUES ('2026-03-31', 'x',"
            " 'price.created', 'x')"
        )
        assert differing(books) == {"invoices", "audit"}

    def test_a_changed_sign_off_is_found(self, books: SignOff) -> None:
        an_invoice(a_caller(), "2", IN_APRIL)
        issue_due()
        april = sign(APRIL)
        assert april.previous == books.head
        assert differing(april) == set()
        tamper("UPDATE sign_offs SET head = repeat('0', 64) WHERE month = '2026-03-01'")
        with db.transaction() as session:
            assert differing(sign_offs.find(session, MARCH)) == {"head"}
        assert differing(april) == {"previous head"}

    def test_forgotten_entries_of_the_audit_log_are_not_compared(
        self, books: SignOff, configure: Callable[..., None]
    ) -> None:
        tamper("DELETE FROM audit_log WHERE at < '2026-04-01'")
        assert differing(books) == {"audit"}
        configure(audit_retention=90 * 86_400)
        assert differing(books) == set()


class TestOrder:
    def test_a_month_is_signed_off_when_it_is_over_and_has_its_statements(self) -> None:
        an_invoice(a_caller(), "1")
        with pytest.raises(InvalidRequest, match=r"1 statements of 2026-03 are not issued yet"):
            sign(MARCH)
        with pytest.raises(InvalidRequest, match="can be signed off from"):
            sign(datetime.now(UTC).date().replace(day=1))

    def test_months_are_signed_off_one_behind_the_other(self, books: SignOff) -> None:
        for month in (date(2026, 2, 1), date(2026, 5, 1)):
            with pytest.raises(InvalidRequest, match=r"The next month is 2026-04"):
                sign(month)
        assert sign(APRIL).previous == books.head

    def test_late_rows_are_refused(self, books: SignOff) -> None:
        caller = a_caller()
        for at in (IN_MARCH, datetime(2026, 2, 1, tzinfo=UTC)):
            with pytest.raises(IntegrityError, match="is signed off"):
                an_invoice(caller, "1", at)
        an_invoice(caller, "1", IN_APRIL)
        with (
            pytest.raises(IntegrityError, match="the month 2026-03 is signed off"),
            as_owner() as session,
        ):
            session.execute(
                text(
                    "INSERT INTO credit_notes (id, account_id, livemode, batch_id, amount, reason, key,"
                    " created_at) SELECT gen_random_uuid(), account_id, livemode, batch_id, 1, 'r', 'k',"
                    " '2026-03-09' FROM invoices WHERE batch_id IS NOT NULL LIMIT 1"
                )
            )
        assert differing(books) == set()

    def test_a_late_statement_is_refused(self, books: SignOff) -> None:
        tamper("DELETE FROM invoices WHERE month IS NOT NULL")
        with pytest.raises(IntegrityError, match="is signed off"):
            issue_due()

    def test_a_credit_note_on_a_signed_batch_is_of_the_open_month(self, books: SignOff) -> None:
        caller, batch = _a_batch()
        note = credit(batch, amount=Decimal("0.1"))
        assert differing(books) == set()
        this = note.created_at.astimezone(UTC).date().replace(day=1)
        assert read(caller, this)["total"] == "-0.10"


def _a_batch() -> tuple[Caller, Any]:
    with db.transaction() as session:
        row = session.execute(
            text(
                "SELECT batch_id, account_id, livemode FROM invoices WHERE livemode AND month IS NULL"
            )
        ).one()
    return Caller(row.account_id, row.livemode, frozenset(), row.batch_id), row.batch_id


class TestFiles:
    def test_they_are_verified_without_the_database(self, books: SignOff, tmp_path: Path) -> None:
        folder = exported(books, tmp_path / "books")
        assert book_files.verify(folder, head=books.head)["month"] == "2026-03"
        with pytest.raises(book_files.Invalid, match="was asked for"):
            book_files.verify(folder, head="00" * 32)
        with pytest.raises(InvalidRequest, match="is not empty"):
            exported(books, folder)

    def test_the_algorithm_of_the_manual_finds_the_same_head(
        self, books: SignOff, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = exported(books, tmp_path / "books")
        page = (ROOT / "docs/billing.md").read_text()
        (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        exec(code, {"FOLDER": str(folder)})
        assert capsys.readouterr().out.split() == [books.head, "True"]

    def test_every_changed_byte_of_a_record_is_found(self, books: SignOff, tmp_path: Path) -> None:
        folder = exported(books, tmp_path / "books")
        for path in folder.glob("*.jsonl"):
            content = path.read_bytes()
            for at in range(0, len(content), 7):
                changed = bytearray(content)
                changed[at] ^= 1
                path.write_bytes(changed)
                with pytest.raises(book_files.Invalid):
                    book_files.verify(folder)
            path.write_bytes(content)
        book_files.verify(folder)

    def test_removed_repeated_and_exchanged_records_are_found(
        self, books: SignOff, tmp_path: Path
    ) -> None:
        folder = exported(books, tmp_path / "books")
        for path in folder.glob("*.jsonl"):
            lines = path.read_bytes().splitlines(keepends=True)
            for other in (lines[:-1], lines[1:], [*lines, lines[-1]], lines[::-1], []):
                if other != lines:
                    path.write_bytes(b"".join(other))
                    with pytest.raises(book_files.Invalid):
                        book_files.verify(folder)
            path.write_bytes(b"".join(lines)[:-1])
            with pytest.raises(book_files.Invalid, match="cut off"):
                book_files.verify(folder)
            path.write_bytes(b"".join(lines))

    def test_each_changed_field_of_the_manifest_is_found(
        self, books: SignOff, tmp_path: Path
    ) -> None:
        folder = exported(books, tmp_path / "books")
        path = folder / "manifest.json"
        right = json.loads(path.read_bytes())
        others: list[Any] = [[], {}, 7, right | {"more": 1}]
        others += [
            right | {name: value}
            for name, value in (
                ("format", 2),
                ("month", "2026-04"),
                ("month", "soon"),
                ("previous", "11" * 32),
                ("previous", "x"),
                ("head", "00" * 32),
                ("sections", {}),
                ("sections", None),
            )
        ]
        for name in right["sections"]:
            for part in ({"records": 99}, {"head": "00" * 32}, {"head": 1}):
                section = {name: right["sections"][name] | part}
                others.append(right | {"sections": right["sections"] | section})
        for other in others:
            path.write_text(json.dumps(other))
            with pytest.raises(book_files.Invalid):
                book_files.verify(folder)
        path.write_text("no json")
        with pytest.raises(book_files.Invalid):
            book_files.verify(folder)


def test_the_commands(books: SignOff, tmp_path: Path) -> None:
    def run(*arguments: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["statements", *arguments, "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if code == 0 else result.output

    shown = run("sign-off", "2026-03")
    assert (shown["head"], run("list")["data"]) == (books.head, [shown])
    assert run("verify")["data"] == run("verify", "2026-03")["data"] == []
    folder = tmp_path / "books"
    assert run("export", "2026-03", str(folder))["manifest"] == str(folder / "manifest.json")
    assert run("verify-files", str(folder), "--head", books.head)["head"] == books.head
    tamper("UPDATE credit_notes SET reason = 'x'")
    assert "1 difference" in run("verify", code=1)
    (folder / "audit.jsonl").write_bytes(b"")
    assert "audit.jsonl: " in run("verify-files", str(folder), code=1)
    assert "is not signed off" in run("verify", "2026-04", code=1)
    assert timedelta(0) < datetime.now(UTC) - datetime.fromtimestamp(shown["signed_at"], UTC)
