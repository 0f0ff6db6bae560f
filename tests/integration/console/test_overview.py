"""The first page: what to do first, what runs, and what needs attention."""

import re
from collections.abc import Callable

import pytest

from tests import factories, ran
from tests.integration.console.conftest import Person
from tests.ran import answered
from xalen_batch import db, ids
from xalen_batch.models import Schedule


def test_a_new_account_is_told_what_to_do_first(visitor: Person) -> None:
    page = visitor.browser.page("/console")
    assert "Start with a file" in page.text
    assert "client.batches.create" in page.text


def test_it_shows_what_runs_and_what_it_costs(visitor: Person) -> None:
    ran.submitted([factories.chat_line("a")], visitor.caller)
    ran.ended({"a": answered()}, visitor.caller)
    text = visitor.browser.page("/console").text
    assert "input.jsonl" in text
    assert "1 invoice, exact 0.00 002" in text


def test_htmx_gets_what_runs_alone(visitor: Person) -> None:
    ran.submitted([factories.chat_line("a")], visitor.caller)
    seen = visitor.browser.get("/console", **{"hx-request": "true", "hx-target": "running"})
    assert "input.jsonl" in seen.text
    assert "<html" not in seen.html


def test_a_batch_that_failed_is_told_with_its_next_step(visitor: Person) -> None:
    with db.transaction() as session:
        file = factories.input_file(session, visitor.caller, b"{}", filename="bad.jsonl")
        errors = [{"code": "duplicate_custom_id", "line": 17, "message": "x", "param": None}]
        failed = factories.batch(
            session,
            visitor.caller,
            file,
            status="failed",
            failed_at=db.now(session),
            errors=errors,
        )
    page = visitor.browser.page("/console")
    assert "bad.jsonl failed validation" in page.text
    assert "First: line 17, duplicate_custom_id" in page.text
    assert f'class="btn" href="/console/batches/{ids.render("batch", failed.id)}"' in page.html


def test_a_schedule_that_its_failures_paused_is_told(visitor: Person) -> None:
    with db.transaction() as session:
        made = factories.schedule(session, visitor.caller, name="prices")
        schedule = session.get_one(Schedule, made.id)
        schedule.pause(db.now(session), "3 runs failed in a row")
        schedule.failures = 3
    assert "prices is paused: 3 runs failed in a row" in visitor.browser.page("/console").text


def test_every_link_of_the_navigation_leads_to_a_page(visitor: Person) -> None:
    page = visitor.browser.page("/console")
    navigation = page.html.partition('<nav class="nav"')[2].partition("</nav>")[0]
    links = re.findall(r'<a href="([^"]+)"', navigation)
    assert len(links) == 7
    for link in links:
        assert f'href="{link}" aria-current="page"' in visitor.browser.page(link).html


@pytest.mark.parametrize(
    ("kind", "page"),
    [
        ("batch", "batches"),
        ("sched", "schedules"),
        ("file", "files"),
        ("inv", "invoices"),
        ("whe", "settings/webhooks"),
    ],
)
def test_an_id_leads_to_its_page(visitor: Person, kind: ids.Kind, page: str) -> None:
    id = ids.render(kind, ids.new())
    assert visitor.browser.get(f"/console/go?id={id}").location == f"/console/{page}/{id}"


def test_another_text_leads_nowhere(signed_in: Callable[..., Person]) -> None:
    seen = signed_in().browser.get("/console/go?id=nothing")
    assert seen.status == 404
    assert "is not an id that has a page" in seen.text
