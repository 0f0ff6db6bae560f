"""Schedules in a browser: their nights, pause, resume and a run now."""

import pytest

from tests import factories
from tests.integration.console.conftest import Person
from xalen_batch import db, ids
from xalen_batch.models import Schedule, ScheduleRun
from xalen_batch.schedules import runs
from xalen_batch.states import ScheduleStatus


@pytest.fixture
def path(visitor: Person) -> str:
    with db.transaction() as session:
        file = factories.input_file(session, visitor.caller, [factories.chat_line("a")])
        made = factories.schedule(
            session, visitor.caller, name="digest", input_file_id=ids.render("file", file.id)
        )
        return f"/console/schedules/{ids.render('sched', made.id)}"


def row(path: str) -> Schedule:
    with db.reading() as session:
        return session.get_one(Schedule, ids.parse("sched", path.rpartition("/")[2]))


def runs_of(path: str) -> list[ScheduleRun]:
    with db.reading() as session:
        return runs.page(session, row(path).id, state=None, limit=10, after=None).data


def test_it_shows_its_next_fires_in_both_clocks(visitor: Person, path: str) -> None:
    page = visitor.browser.page(path)
    assert "At 02:30 every day, Europe/Berlin" in page.text
    assert page.text.count("02:30") >= 8
    assert "+01:00" in page.text or "+02:00" in page.text
    assert f'href="{path}"' in visitor.browser.page("/console/schedules").html


def test_it_is_paused_with_a_reason_and_resumed(visitor: Person, path: str) -> None:
    visitor.browser.page(path)
    visitor.browser.post(f"{path}/pause", {"note": "The warehouse is being moved."})
    assert row(path).status == ScheduleStatus.PAUSED
    assert "The warehouse is being moved." in visitor.browser.page(path).text
    visitor.browser.post(f"{path}/resume")
    assert row(path).status == ScheduleStatus.ACTIVE


def test_too_long_a_reason_is_refused(visitor: Person, path: str) -> None:
    visitor.browser.page(path)
    seen = visitor.browser.post(f"{path}/pause", {"note": "x" * 501})
    assert seen.status == 400
    assert "it has 501 characters" in seen.text
    assert row(path).status == ScheduleStatus.ACTIVE


def test_two_clicks_run_it_once(visitor: Person, path: str) -> None:
    asked = visitor.browser.page(f"{path}/run")
    assert "Run digest now" in asked.text
    nonce = asked.html.partition('name="nonce" value="')[2].partition('"')[0]
    for _ in range(2):
        assert visitor.browser.post(f"{path}/run", {"nonce": nonce}).location == path
    assert [run.trigger for run in runs_of(path)] == ["manual"]
    assert "manual" in visitor.browser.page(path).text
