"""`accounts list`, `create`, `rename`, `weight`, `disable`, `enable`, `usage`: an operator's
accounts, each change in the audit log.
"""

import json
import os
import pwd
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import select
from typer.testing import CliRunner, Result

from tests import billing, factories
from tests.integration.accounts.audit_log import entries
from tests.integration.conftest import Api
from xalen_batch import db, ids
from xalen_batch.accounts import accounts
from xalen_batch.accounts.accounts import Caller
from xalen_batch.cli.main import app
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import Account, Batch, Invoice, Schedule
from xalen_batch.schedules import due, fire
from xalen_batch.states import BatchStatus

pytestmark = pytest.mark.usefixtures("database")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["accounts", *arguments])


def answer(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def error(*arguments: str) -> tuple[int, str]:
    result = run(*arguments)
    # In a box that folds.
    return result.exit_code, " ".join(result.stderr.replace("│", " ").split())


@pytest.fixture
def acme() -> Caller:
    with db.transaction() as session:
        return factories.caller(session, factories.account(session, "acme"), livemode=True)


def account(of: Caller) -> Account:
    with db.reading() as session:
        return session.get_one(Account, of.account_id)


def test_accounts_are_made_listed_renamed_and_weighed_and_the_log_says_by_whom() -> None:
    made = answer("create", "acme", "--weight", "2")
    answer("rename", "acme", "acme-eu")
    assert answer("weight", "acme-eu", "4")["weight"] == answer("weight", "acme-eu")["weight"] == 4
    listed = answer("list")
    assert (listed["object"], listed["has_more"]) == ("list", False)
    assert listed["data"] == [made | {"name": "acme-eu", "weight": 4, "keys": 0, "open_batches": 0}]
    assert "acme-eu" in run("list").stdout
    with db.reading() as session:
        found = [entry for entry in entries(session) if entry.object_id == made["id"]]
    assert {entry.actor for entry in found} == {f"cli:{pwd.getpwuid(os.getuid()).pw_name}"}
    assert [(entry.before, entry.after) for entry in found[-2:]] == [
        ({"name": "acme"}, {"name": "acme-eu"}),
        ({"weight": "2"}, {"weight": "4"}),
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["rename", "amce", "x"], 1, "There is no account named 'amce'. Did you mean 'acme'?"),
        (["create", "acme"], 1, "An account named 'acme' exists already. Choose another name."),
        (["rename", "acme", "acme"], 1, "exists already"),
        (["create", " "], 2, "is not a name. Use 1 to 200 printable characters."),
        (["create", "a\x1b[2J"], 2, "is not a name"),
        (["weight", "acme", "0"], 2, "greater than or equal to 1"),
        (["disable", "nobody"], 1, "There is no account named 'nobody'."),
        (["usage", "nobody"], 1, "There is no account named 'nobody'."),
        (["usage", "--month", "9999-12"], 2, "is not a month. Write it as 2026-11."),
        (["usage", "--month", "november"], 2, "is not a month"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(
    acme: Caller, arguments: list[str], code: int, words: str
) -> None:
    exit_code, said = error(*arguments)
    assert (exit_code, words in said) == (code, True), said
    assert account(acme).name == "acme"


def test_a_typo_in_the_account_of_a_new_key_makes_nothing(acme: Caller) -> None:
    result = CliRunner().invoke(app, ["keys", "create", "--account", "amce"])
    assert result.exit_code == 1
    assert "no account named 'amce'. Did you mean 'acme'?" in result.stderr
    assert "--create-account" in result.stderr
    assert [one["name"] for one in answer("list")["data"]] == ["acme"]
    assert (
        CliRunner()
        .invoke(app, ["keys", "create", "--account", "beta", "--create-account"])
        .exit_code
        == 0
    )
    assert [(one["name"], one["keys"]) for one in answer("list")["data"]] == [
        ("acme", 1),
        ("beta", 1),
    ]


def test_live_keys_look_different_from_test_keys(acme: Caller) -> None:
    with db.transaction() as session:
        factories.key(session, session.get_one(Account, acme.account_id))
    shown = CliRunner().invoke(app, ["keys", "list"]).stdout
    rows = [line.split() for line in shown.splitlines() if "key_" in line]
    assert sorted(row[2] for row in rows) == ["LIVE", "test"]


def a_batch(of: Caller, status: BatchStatus) -> Batch:
    with db.transaction() as session:
        return factories.batch(
            session, of, factories.input_file(session, of, b""), status=status.value
        )


def status(batch: Batch) -> str:
    with db.reading() as session:
        return session.get_one(Batch, batch.id).status


class TestDisabled:
    def test_keys_are_refused_with_words_until_the_account_is_enabled(self, api: Api) -> None:
        with db.reading() as session:
            name = session.get_one(Account, accounts.authenticate(session, api.key).account_id).name
        answer("disable", name)
        refused = api.ask("GET", "/v1/files")
        assert (refused.status, refused.error["code"], refused.error["type"]) == (
            403,
            "account_disabled",
            "permission_error",
        )
        assert "disabled" in refused.error["message"]
        assert "disabled 20" in run("list").stdout
        answer("disable", name)
        answer("enable", name)
        assert api.ask("GET", "/v1/files").status == 200
        with db.reading() as session:
            changes = [
                entry
                for entry in entries(session)
                if "disabled_at" in {**(entry.before or {}), **(entry.after or {})}
            ]
        assert [(entry.before is None, entry.after is None) for entry in changes] == [
            (True, False),
            (False, True),
        ]

    def test_open_batches_go_on(self, acme: Caller) -> None:
        batch = a_batch(acme, BatchStatus.IN_PROGRESS)
        answer("disable", "acme")
        assert status(batch) == "in_progress"

    def test_open_batches_are_cancelled_where_that_is_asked_and_no_other_ones(
        self, acme: Caller
    ) -> None:
        with db.transaction() as session:
            other = factories.caller(session)
        batches = [
            a_batch(acme, BatchStatus.IN_PROGRESS),
            a_batch(acme, BatchStatus.VALIDATING),
            a_batch(acme, BatchStatus.COMPLETED),
        ]
        others = a_batch(other, BatchStatus.IN_PROGRESS)
        assert "Open batches cancelled: 2." in run("disable", "acme", "--cancel-batches").stderr
        assert [status(batch) for batch in (*batches, others)] == [
            "cancelling",
            "cancelling",
            "completed",
            "in_progress",
        ]

    def test_schedules_start_nothing_until_then(self, acme: Caller) -> None:
        with db.transaction() as session:
            schedule = factories.schedule(session, acme)
            schedule.next_fire_at = db.now(session)
        answer("disable", "acme")
        fire.run()
        with db.reading() as session:
            assert not due.is_any(session)
            before = session.get_one(Schedule, schedule.id).next_fire_at
        answer("enable", "acme")
        fire.run()
        with db.reading() as session:
            after = session.get_one(Schedule, schedule.id).next_fire_at
        assert before is not None
        assert after is not None
        assert after > before


class TestUsage:
    def test_invoices_of_the_month_and_open_batches_by_account_and_mode(self, acme: Caller) -> None:
        ended = billing.ended(
            [billing.Ran(Usage(1_000, 500)), billing.Ran(Usage(1, 1))], acme, livemode=True
        )
        with db.transaction() as session:
            billing.running(session, [billing.Ran(Usage(2_000, 0))], acme, livemode=True)
            total = total_of(ended)
        found = answer("usage")
        [live] = found["data"]
        assert (live["account_id"], live["account"], live["livemode"]) == (
            ids.render("acct", acme.account_id),
            "acme",
            True,
        )
        assert (live["batches"], live["input_tokens"], live["output_tokens"]) == (1, 1_001, 501)
        assert Decimal(live["total"]) == total > 0
        assert (live["open_batches"], Decimal(live["open_total"]) > 0) == (1, True)
        assert "acme" in run("usage", "acme").stdout
        assert answer("usage", "--month", "2020-01")["data"] == []


def total_of(batch: Batch) -> Decimal:

    with db.reading() as session:
        return session.scalars(select(Invoice.total).where(Invoice.batch_id == batch.id)).one()
