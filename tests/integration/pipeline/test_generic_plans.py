"""Statements that every batch or every poll runs keep one plan for a connection.

PostgreSQL compares the generic plan with plans for the values of five executions. If the generic
plan looks worse, it plans each execution anew, which takes longer than these statements run.
"""

from collections.abc import Callable
from functools import partial
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from benchmarks import backlog
from tests.conftest import as_owner
from xalen_batch import db, events
from xalen_batch.accounts.accounts import Owner
from xalen_batch.events import Happened
from xalen_batch.models.events import EventType
from xalen_batch.pipeline import fairness, recover, seal

pytestmark = pytest.mark.usefixtures("database")

# psycopg prepares a statement for its sixth execution; the five after that may have own plans.
EXECUTIONS = 12
ACCOUNT = UUID(int=1)
_KEPT = text("""
    SELECT statement, generic_plans FROM pg_prepared_statements
    WHERE NOT from_sql AND generic_plans + custom_plans > 5
""")


def _record(session: Session) -> None:
    events.record(session, Owner(ACCOUNT, False), Happened(EventType.BATCH_COMPLETED, uuid4()))


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda s: fairness.forget_idle_time(s, ACCOUNT), id="forget_idle_time"),
        pytest.param(_record, id="events.record"),
        pytest.param(partial(recover._batches_due, ended_among=200), id="batches_due"),
        pytest.param(recover._tasks_due, id="tasks_due"),
        pytest.param(recover._roll_windows, id="roll_windows"),
        pytest.param(seal.is_due, id="seal.is_due"),
    ],
)
def test_a_connection_plans_a_usual_statement_once(act: Callable[[Session], object]) -> None:
    with as_owner() as session:
        backlog.fill(session, batches=200, tasks=2, accounts=4)
    # New connections have prepared nothing.
    db.engine().dispose()
    with db.transaction() as session:
        for _ in range(EXECUTIONS):
            act(session)
        kept = session.execute(_KEPT).all()
        assert kept
        assert [row.statement for row in kept if not row.generic_plans] == []
