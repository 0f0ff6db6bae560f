"""Pages of a schedule's runs."""

import pytest
from sqlalchemy import text

from tests import factories
from tests.conftest import as_owner
from tests.integration import plans
from xalen_batch import db
from xalen_batch.schedules import runs
from xalen_batch.states import RunState

pytestmark = pytest.mark.usefixtures("database", "valkey")


def test_a_page_of_the_runs_in_one_state_reads_no_other_runs() -> None:
    with db.transaction() as session:
        caller = factories.caller(session)
        many, other = [factories.schedule(session, caller) for _ in range(2)]
    with as_owner() as session:
        for schedule, state, number in ((many, "succeeded", 5_000), (other, "failed", 50)):
            session.execute(
                text("""
                    INSERT INTO schedule_runs (id, schedule_id, scheduled_for, trigger, state, definition)
                    SELECT gen_random_uuid(), :schedule, '2026-01-01Z'::timestamptz + number * interval '1 hour',
                        'schedule', :state, '{}'
                    FROM generate_series(1, :number) AS number
                """),
                {"schedule": schedule.id, "state": state, "number": number},
            )
        session.execute(text("ANALYZE schedule_runs"))
    found = plans.of(
        lambda session: runs.page(session, many.id, state=RunState.FAILED, limit=100, after=None)
    )
    assert sum(map(plans.pages, found)) < 10
