"""Reconcile: silent on the product's own data, loud about each disagreement."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests import billing, factories
from tests.billing import REFUSED, Ran, ended, running
from tests.conftest import as_owner
from tests.factories import CHAT_MODEL, RERANK_MODEL
from tests.integration import plans
from xalen_batch import db, ids
from xalen_batch.billing import reconcile
from xalen_batch.billing.reconcile import Difference
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import Batch
from xalen_batch.states import BatchStatus, LineError

pytestmark = pytest.mark.usefixtures("database", "valkey")

LINES = [
    Ran(Usage(1_234, 567)),
    Ran(Usage(1_234, 567, cached_tokens=10, reasoning_tokens=20)),
    Ran(Usage(5_000, 7), RERANK_MODEL),
    Ran(REFUSED),
    Ran(LineError.REQUEST_TIMEOUT),
]
# Prices of which cached input has one.
CACHED_PRICES = {
    CHAT_MODEL: {"input": "0.02", "cached_input": "0.002", "output": "0.04"},
    RERANK_MODEL: {"input": "0.003"},
}


def differences() -> list[Difference]:
    return list(reconcile.differences())


def corrupt(statement: str, **values: object) -> None:
    """Change rows that the triggers protect."""
    with as_owner() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        cursor = session.connection().execute(text(statement), values)
        assert cursor.rowcount


@pytest.fixture
def batch() -> Batch:
    return ended(LINES)


@pytest.fixture
def statement(batch: Batch) -> str:
    """The id of an issued statement with this batch on it."""
    corrupt("UPDATE invoices SET issued_at = '2026-03-31 23:59:59.999999Z'")
    with db.transaction() as session:
        assert billing.issue_due(session) == 1
        (id,) = session.execute(text("SELECT id FROM invoices WHERE month IS NOT NULL")).scalars()
    return ids.render("inv", UUID(str(id)))


def test_an_empty_database_agrees() -> None:
    assert differences() == []


def test_batches_of_every_kind_agree(statement: str) -> None:
    ended([], livemode=True)
    ended([Ran(REFUSED)])
    with db.transaction() as session:
        caller = factories.caller(session, livemode=True)
        running(session, LINES, caller)
        factories.batch(session, caller, factories.input_file(session, caller, b""))
        factories.batch(
            session,
            caller,
            factories.input_file(session, caller, b""),
            status=BatchStatus.FAILED.value,
        )
    assert differences() == []


@pytest.mark.parametrize(
    ("corruption", "what", "expected", "found"),
    [
        (
            "UPDATE results SET amount = amount + 1e-12 WHERE line_no = 2",
            "charge of line 2",
            "0.00002368",
            "0.000023680001",
        ),
        (
            "UPDATE results SET output_tokens = 568 WHERE line_no = 1",
            "charge of line 1",
            "0.0000237",
            "0.00002368",
        ),
        ("DELETE FROM results WHERE line_no = 4", "number of lines", "5", "4"),
        ("DELETE FROM results WHERE line_no = 5", "requests listed as not billed", "1", "2"),
        ("DELETE FROM batches", "lines of a batch that is not there", "0", "5"),
        ("UPDATE batches SET completed = 2", "completed", "3", "2"),
        ("UPDATE batches SET failed = 1", "failed", "2", "1"),
        ("UPDATE batches SET input_tokens = 1", "input_tokens", "7468", "1"),
        ("UPDATE batches SET cached_tokens = 1", "cached_tokens", "10", "1"),
        ("UPDATE batches SET output_tokens = 1", "output_tokens", "1141", "1"),
        ("UPDATE batches SET reasoning_tokens = 1", "reasoning_tokens", "20", "1"),
        ("DELETE FROM invoices", "number of invoices", "1", "0"),
        ("UPDATE batches SET status = 'failed'", "number of invoices", "0", "1"),
        (
            "UPDATE invoices SET total = 1",
            "total of the invoice, by the charges of its lines",
            "0.00005486",
            "1",
        ),
        (
            "UPDATE invoice_lines SET amount = 0 WHERE kind = 'discount'",
            "total of the invoice, by its own lines",
            "0.00010972",
            "0.00005486",
        ),
        (
            "UPDATE invoice_lines SET quantity = 2469 WHERE quantity = 2468",
            "invoiced input tokens of mistral-small-3-1",
            "2468",
            "2469",
        ),
        (
            "DELETE FROM invoice_lines WHERE reason = 'no_price'",
            "invoiced output tokens of bge-reranker-v2",
            "7",
            "none",
        ),
        (
            "UPDATE invoice_lines SET amount = 1 WHERE reason = 'no_price'",
            "amount of output tokens of bge-reranker-v2",
            "0",
            "1",
        ),
    ],
)
def test_each_thing_that_does_not_agree_is_found(
    batch: Batch, corruption: str, what: str, expected: str, found: str
) -> None:
    corrupt(corruption)
    assert Difference(ids.render("batch", batch.id), what, expected, found) in differences()


@pytest.mark.parametrize(
    ("corruption", "what"),
    [
        ("UPDATE invoices SET livemode = true", "account and mode of the invoice"),
        (
            "UPDATE files SET livemode = true WHERE batch_id IS NULL",
            "account and mode of the input file",
        ),
    ],
)
def test_money_that_changed_sides_is_found(batch: Batch, corruption: str, what: str) -> None:
    corrupt(corruption)
    account = batch.account_id
    assert differences() == [
        Difference(ids.render("batch", batch.id), what, f"{account} test", f"{account} live")
    ]


@pytest.mark.parametrize(
    ("corruption", "what"),
    [
        ("UPDATE invoices SET total = 1 WHERE month IS NOT NULL", "total of the statement"),
        (
            "UPDATE invoice_lines SET amount = 1 WHERE kind = 'rounding'",
            "total of the statement, by its own lines",
        ),
        ("UPDATE invoice_lines SET amount = 1 WHERE kind = 'batch'", "invoices on the statement"),
        (
            "UPDATE invoices SET issued_at = '2026-04-01' WHERE month IS NULL",
            "invoices on the statement",
        ),
        (
            "UPDATE invoices SET livemode = true WHERE month IS NOT NULL",
            "invoices on the statement",
        ),
    ],
)
def test_a_statement_that_does_not_agree_is_found(
    statement: str, corruption: str, what: str
) -> None:
    assert differences() == []
    corrupt(corruption)
    assert (statement, what) in {
        (difference.where, difference.what) for difference in differences()
    }


def test_a_charge_without_a_success_is_found(batch: Batch) -> None:
    # Drop the table's check, which refuses such a row; the transaction is rolled back.
    with as_owner() as session:
        session.execute(
            text("ALTER TABLE results DROP CONSTRAINT ck_results_charged_iff_succeeded")
        )
        session.execute(text("UPDATE results SET amount = 1 WHERE line_no = 4"))
        found = list(reconcile.of_batches(session, [batch.id]))
        session.rollback()
    assert ("charge of line 4", "none", "1") in [found[1:] for found in found]


def test_the_checks_of_a_step_see_one_moment_while_batches_run_on(batch: Batch) -> None:
    corrupt("UPDATE results SET amount = 1 WHERE line_no = 1")
    with db.snapshot() as session:
        found = reconcile.of_batches(session, [batch.id])
        assert next(found).what == "charge of line 1"
        corrupt("DELETE FROM invoices")
        assert "number of invoices" not in {difference.what for difference in found}
    assert "number of invoices" in {difference.what for difference in differences()}


def test_each_step_has_a_snapshot_of_its_own_and_goes_on_behind_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = sorted(ended(LINES).id for _ in range(3))
    monkeypatch.setattr(
        reconcile,
        "_NEXT_BATCHES",
        text(reconcile._NEXT_BATCHES.text.replace("200000", str(2 * len(LINES)))),
    )
    opened = []

    def snapshot() -> AbstractContextManager[Session]:
        opened.append(1)
        return db.snapshot()

    found = list(reconcile.steps(snapshot))
    assert [(step.checked, step.last) for step in found] == [
        (2, made[1]),
        (1, made[2]),
        (0, reconcile.LAST),
    ]
    # For each step one that finds its batches and one that checks them; the last finds no statement.
    assert len(opened) == 7
    assert [step.checked for step in reconcile.steps(after=made[1])] == [1, 0]


def test_a_transaction_that_sees_several_moments_is_refused(batch: Batch) -> None:
    with pytest.raises(RuntimeError, match="this transaction is read committed"):
        list(reconcile.differences(db.transaction))


def copied(batches: int) -> None:
    """Copy the existing batch `batches` times, each with its input file and its invoice."""
    with as_owner() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(
            text(
                "INSERT INTO batches SELECT (jsonb_populate_record(batch, jsonb_build_object('id',"
                " gen_random_uuid()))).* FROM batches AS batch, generate_series(1, :batches)"
            ),
            {"batches": batches},
        )
        session.execute(
            text(
                "INSERT INTO invoices SELECT (jsonb_populate_record("
                "   invoice, jsonb_build_object('id', gen_random_uuid(), 'batch_id', batch.id))).*"
                " FROM batches AS batch, invoices AS invoice WHERE batch.id <> invoice.batch_id"
            )
        )


BATCHES = 1_000


def test_the_work_of_a_step_grows_with_what_it_checks_and_not_with_its_square(batch: Batch) -> None:
    copied(BATCHES)
    corrupt("UPDATE invoices SET issued_at = '2026-03-31 23:59:59.999999Z'")
    with db.transaction() as session:
        assert billing.issue_due(session) == 1
    with as_owner() as session:
        session.execute(text("ANALYZE"))

    @contextmanager
    def snapshot() -> Iterator[Session]:
        with Session(db.engine()) as session:
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    for plan in plans.of(lambda _: list(reconcile.steps(snapshot))):
        rows = [
            (
                node["Actual Rows"]
                + node.get("Rows Removed by Filter", 0)
                + node.get("Rows Removed by Join Filter", 0)
            )
            * node["Actual Loops"]
            for node in plans.nodes(plan)
        ]
        assert max(rows) < 20 * BATCHES


def test_cached_input_with_a_price_agrees() -> None:
    ended(LINES, price_snapshot=CACHED_PRICES)
    assert differences() == []


def test_cached_input_that_was_charged_as_other_input_is_a_difference() -> None:
    batch = ended(LINES, price_snapshot=CACHED_PRICES, old=[2])
    what = {difference.what for difference in differences()}
    assert "charge of line 2" in what
    assert {difference.where for difference in differences()} == {ids.render("batch", batch.id)}
