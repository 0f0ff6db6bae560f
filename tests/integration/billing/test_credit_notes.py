"""Credit notes: exact, at most what was billed, once for a request, on the next statement."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from typer.testing import CliRunner

from tests import factories
from tests.conftest import as_owner, empty
from tests.credit_notes import backdate, billed, credit
from tests.integration.conftest import Api
from tests.outcome import assert_reconciled
from tests.statements import MARCH, a_caller, issue_due, read
from xalen_batch import db, ids, money
from xalen_batch.accounts import accounts
from xalen_batch.accounts.accounts import Owner
from xalen_batch.billing import credit_notes, reconcile, statement_pages, statements
from xalen_batch.cli.main import app
from xalen_batch.errors import InvalidRequest, NotFound
from xalen_batch.models import AuditEntry, CreditNote

pytestmark = pytest.mark.usefixtures("database", "valkey")
APRIL = date(2026, 4, 1)
QUICK = hypothesis_settings(
    max_examples=8,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


class TestAmount:
    def test_a_share_is_exact(self) -> None:
        batch = billed(a_caller(), "0.00000123456789")
        assert credit(batch, share=Decimal("0.333333")).amount == Decimal("0.00000041152221847737")

    def test_without_amount_or_share_it_is_all_that_is_left(self) -> None:
        batch = billed(a_caller(), "1.0000000001")
        credit(batch, amount=Decimal("0.4"))
        assert credit(batch, "rest").amount == Decimal("0.6000000001")
        with pytest.raises(InvalidRequest, match=r"0\.00 is left to credit"):
            credit(batch, "more")

    @pytest.mark.parametrize(
        ("options", "param"),
        [
            ({"amount": Decimal(0)}, "amount"),
            ({"amount": Decimal(-1)}, "amount"),
            ({"amount": Decimal("NaN")}, "amount"),
            ({"amount": Decimal("Infinity")}, "amount"),
            ({"amount": Decimal("1E+5")}, "amount"),
            ({"amount": Decimal("1E-31")}, "amount"),
            ({"amount": Decimal("2.000000000000000000001")}, "amount"),
            ({"share": Decimal(0)}, "share"),
            ({"share": Decimal("1.1")}, "share"),
            ({"share": Decimal("NaN")}, "share"),
            ({"amount": Decimal(1), "share": Decimal(1)}, "amount"),
            ({"reason": ""}, "reason"),
            ({"reason": "a\nb"}, "reason"),
            ({"reason": "x" * 501}, "reason"),
        ],
    )
    def test_others_are_refused(self, options: dict[str, Any], param: str) -> None:
        batch = billed(a_caller(), "2")
        with pytest.raises(InvalidRequest) as refused:
            credit(batch, **options)
        assert refused.value.param == param
        with db.transaction() as session:
            assert credit_notes.credited(session, batch) == 0

    def test_a_batch_without_an_invoice_has_none(self) -> None:
        with db.transaction() as session:
            caller = factories.caller(session)
            batch = factories.batch(session, caller, factories.input_file(session, caller, b""))
        with pytest.raises(NotFound, match="its invoice is issued when it ends"):
            credit(batch.id)


class TestOnce:
    def test_the_same_request_makes_one(self) -> None:
        batch = billed(a_caller(), "2")
        first = credit(batch, share=Decimal("0.5"))
        assert credit(batch, share=Decimal("0.5")).id == first.id
        assert credit(batch, share=Decimal("0.5"), key="again").id != first.id

    def test_a_key_names_one(self) -> None:
        batch = billed(a_caller(), "2")
        first = credit(batch, amount=Decimal(1), key="k")
        assert credit(batch, amount=Decimal("1.0"), key="k").id == first.id
        with pytest.raises(InvalidRequest, match=r"has this key, over 1\.00 USD for 'late'"):
            credit(batch, amount=Decimal("0.5"), key="k")
        with pytest.raises(InvalidRequest, match="has this key"):
            credit(batch, "other", amount=Decimal(1), key="k")

    @given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from("abc")), min_size=2, max_size=6))
    @QUICK
    def test_concurrent_requests_never_credit_more_than_was_billed(
        self, wanted: list[tuple[int, str]]
    ) -> None:
        batch = billed(a_caller(), "0.0000000010")

        def ask(request: tuple[int, str]) -> bool:
            tenths, key = request
            try:
                credit(batch, amount=Decimal(tenths).scaleb(-10), key=key)
            except InvalidRequest:
                return False
            return True

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(ask, wanted))
        with db.transaction() as session:
            notes = credit_notes.of_batch(session, batch)
        assert 0 < sum(note.amount for note in notes) <= Decimal("0.0000000010")
        assert len({note.key for note in notes}) == len(notes)
        # The first one of the keys always fits.
        assert notes


class TestStatement:
    def test_a_credit_note_is_a_line_of_the_next_statement(self) -> None:
        caller = a_caller()
        batch = billed(caller, "1.005")
        assert issue_due() == 1
        issued = read(caller)
        note = backdate(credit(batch, amount=Decimal("0.0005")), datetime(2026, 4, 2, tzinfo=UTC))
        assert read(caller) == issued
        draft = read(caller, APRIL)
        assert draft["lines"][0] == {
            "kind": "credit",
            "description": f"Credit note {ids.render('cn', note.id)} on"
            f" {ids.render('batch', batch)}: late",
            "invoice_id": None,
            "credit_note_id": ids.render("cn", note.id),
            "reason": None,
            "amount": "-0.0005",
        }
        assert (draft["exact_total"], draft["rounding"], draft["total"]) == (
            "-0.0005",
            "0.0005",
            "0.00",
        )
        assert issue_due() == 1
        stated = read(caller, APRIL)
        assert stated["lines"] == draft["lines"]
        assert stated["total"] == "0.00"
        with db.transaction() as session:
            found = credit_notes.render(session.get_one(CreditNote, note.id))
        assert found["statement_id"] == stated["id"]
        assert issue_due() == 0
        with pytest.raises(AssertionError):
            # an_invoice has no lines: reconcile sees that, and nothing of the credit note.
            assert_reconciled()
        assert not [
            found for found in reconcile.differences() if ids.parse("inv", found.where) is not None
        ]

    def test_a_statement_of_a_version_without_credit_notes_leaves_it_for_the_next(self) -> None:
        caller = a_caller()
        batch = billed(caller, "2")
        note = backdate(credit(batch, amount=Decimal(1)))
        with as_owner() as session:
            session.execute(text("SET LOCAL session_replication_role = replica"))
            stated = session.get_one(CreditNote, note.id)
            stated.statement_id = ids.new()
        assert issue_due() == 1
        with as_owner() as session:
            session.execute(text("SET LOCAL session_replication_role = replica"))
            session.get_one(CreditNote, note.id).statement_id = None
        assert read(caller, APRIL)["total"] == "-1.00"
        assert issue_due() == 1
        assert (read(caller)["total"], read(caller, APRIL)["total"]) == ("2.00", "-1.00")

    def test_a_month_before_the_next_open_one_has_none_of_it(self) -> None:
        caller = a_caller()
        backdate(credit(billed(caller, "2"), amount=Decimal(1)))
        assert read(caller, APRIL)["lines"][:-1] == []
        assert read(caller)["total"] == "1.00"

    def test_a_page_of_a_statement_begins_behind_a_credit_note(self) -> None:
        caller = a_caller()
        batches = [billed(caller, "2"), billed(caller, "3")]
        for batch in batches:
            backdate(credit(batch, amount=Decimal("0.1")))
        for _ in range(2):
            lines: list[Any] = []
            after, more = None, True
            while more:
                with db.reading() as session:
                    page = statement_pages.page(session, caller, MARCH, limit=1, after=after)
                lines += page["lines"]
                more = page["has_more"]
                after = page["lines"][-1]["invoice_id"] or page["lines"][-1]["credit_note_id"]
            assert [line["kind"] for line in lines] == [
                *("batch", "batch", "credit", "credit", "rounding")
            ]
            assert page["total"] == "4.80"
            assert lines == read(caller)["lines"]
            issue_due()
        with db.reading() as session, pytest.raises(InvalidRequest, match="has no line of cn_"):
            statement_pages.page(session, caller, MARCH, limit=1, after=ids.render("cn", ids.new()))

    @given(
        st.lists(
            st.tuples(
                st.decimals("0.0000000001", "9", places=10), st.decimals("0.01", "1", places=3)
            ),
            min_size=1,
            max_size=5,
        )
    )
    @QUICK
    def test_a_statement_is_its_invoices_less_its_credit_notes_rounded_once(
        self, parts: list[tuple[Decimal, Decimal]]
    ) -> None:
        empty()
        caller = a_caller()
        with localcontext(money.EXACT):
            exact = Decimal(0)
            for total, share in parts:
                note = backdate(credit(billed(caller, str(total)), share=share))
                assert note.amount == total * share
                exact += total - note.amount
        draft = read(caller)
        assert issue_due() == 1
        stated = read(caller)
        with localcontext() as context:
            context.rounding = ROUND_HALF_UP
            assert Decimal(stated["total"]) == exact.quantize(Decimal("0.01"))
        assert Decimal(stated["exact_total"]) == exact
        assert [line["amount"] for line in stated["lines"]] == [
            line["amount"] for line in draft["lines"]
        ]
        with localcontext(money.EXACT):
            assert sum(Decimal(line["amount"]) for line in stated["lines"]) == Decimal(
                stated["total"]
            )

    def test_a_credit_note_that_is_made_meanwhile_stops_the_issue(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        caller = a_caller()
        batch = billed(caller, "2")
        note = credit(batch, amount=Decimal(1))

        def late(session: Any, month: Any) -> Decimal:
            backdate(note)
            return Decimal(0)

        monkeypatch.setattr(statements.statement_credits, "sum_of_month", late)
        with pytest.raises(statements.InvoiceAdded):
            issue_due()
        monkeypatch.undo()
        assert issue_due() == 1
        assert read(caller)["total"] == "1.00"


class TestRows:
    def test_a_credit_note_never_changes(self) -> None:
        note = credit(billed(a_caller(), "2"))
        for statement in (
            "UPDATE credit_notes SET amount = 1",
            "UPDATE credit_notes SET reason = 'x'",
            "DELETE FROM credit_notes",
        ):
            with pytest.raises(IntegrityError), as_owner() as session:
                session.execute(text(statement))
        with as_owner() as session:
            session.execute(text("UPDATE credit_notes SET statement_id = gen_random_uuid()"))
        with pytest.raises(IntegrityError), as_owner() as session:
            session.execute(text("UPDATE credit_notes SET statement_id = NULL"))
        assert note.amount == 2

    def test_the_audit_log_has_it(self) -> None:
        batch = billed(a_caller(), "2")
        note = credit(batch, share=Decimal("0.25"))
        with db.transaction() as session:
            (entry,) = session.scalars(
                select(AuditEntry).where(AuditEntry.object_id == ids.render("cn", note.id))
            )
        assert (entry.action, entry.after) == (
            "credit_note.created",
            {"batch_id": str(batch), "amount": "0.50", "share": "0.25", "reason": "late"},
        )

    def test_reconcile_finds_more_than_was_billed_and_a_changed_amount(self) -> None:
        caller = a_caller()
        batch = billed(caller, "2")
        backdate(credit(batch, amount=Decimal(1)))
        issue_due()
        with as_owner() as session:
            session.execute(text("SET LOCAL session_replication_role = replica"))
            session.execute(text("UPDATE credit_notes SET amount = 3"))
        found = {difference.what for difference in reconcile.differences()}
        assert {
            "at most the invoice in credit notes",
            "credit notes on the statement",
            "total of the statement",
        } <= found


def test_the_api_shows_an_account_its_own(api: Api) -> None:
    with db.transaction() as session:
        caller = accounts.authenticate(session, api.key)
    note = credit(billed(caller, "2"), share=Decimal("0.25"))
    credit(billed(a_caller(), "2"))
    id = ids.render("cn", note.id)
    shown = api.ask("GET", f"/v1/credit_notes/{id}").json
    assert (shown["amount"], shown["share"], shown["reason"], shown["statement_id"]) == (
        "0.50",
        "0.25",
        "late",
        None,
    )
    listed = api.ask("GET", "/v1/credit_notes").json
    assert (listed["data"], listed["has_more"]) == ([shown], False)
    assert api.ask("GET", f"/v1/credit_notes/{ids.render('cn', ids.new())}").status == 404
    page = api.ask("GET", f"/v1/credit_notes?after={id}")
    assert page.json["data"] == []


def test_the_commands_make_and_list_them() -> None:
    with db.transaction() as session:
        caller = factories.caller(session, factories.account(session, "acme"), livemode=True)
    batch = ids.render("batch", billed(caller, "2"))

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(app, ["credits", *arguments, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    made = run("create", batch, "--share", "0.5", "--reason", "late")
    assert made == run("create", batch, "--share", "0.5", "--reason", "late")
    assert run("list", "acme", "--live")["data"] == [made]
    assert run("list", "acme")["data"] == []
    for wrong in (["--amount", "x"], ["--amount", "9"], ["--share", "2"]):
        result = CliRunner().invoke(app, ["credits", "create", batch, *wrong, "--reason", "r"])
        assert result.exit_code in (1, 2)
    with db.transaction() as session:
        owner = Owner(caller.account_id, True)
        assert len(credit_notes.page(session, owner, limit=9).data) == 1
