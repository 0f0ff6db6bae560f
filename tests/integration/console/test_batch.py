"""The page of a batch: its figures, its lines, and what may be done with it."""

import json
from collections.abc import Callable

import pytest

from tests import factories, ran
from tests.billing import REFUSED
from tests.integration.console import made
from tests.integration.console.conftest import Person
from tests.integration.console.made import HOSTILE
from tests.ran import answered
from xalen_batch import db, ids
from xalen_batch.api.http import event_stream
from xalen_batch.models import Account, Batch
from xalen_batch.states import BatchStatus


@pytest.fixture
def batch(visitor: Person) -> Batch:
    endings = {f"line {number}": answered() for number in range(30)}
    return ran.ended({**endings, "refused": REFUSED}, visitor.caller, meta={"team": "search"})


@pytest.fixture
def path(batch: Batch) -> str:
    return f"/console/batches/{ids.render('batch', batch.id)}"


def test_it_says_how_it_went_and_what_it_cost(visitor: Person, path: str, batch: Batch) -> None:
    text = visitor.browser.page(path).text
    for said in ("Completed", "30 succeeded", "1 failed", "of 31", "team search", "http_400 1"):
        assert said in text
    # 30 lines of 1,000 and 500 tokens at 0.02 and 0.04 USD per million, less a half.
    assert "0.00 06 USD" in text


def test_it_costs_nothing_to_a_key_that_may_not_see_it(
    signed_in: Callable[..., Person], batch: Batch, path: str
) -> None:
    with db.reading() as session:
        account = session.get_one(Account, batch.account_id)
    text = signed_in(of=account, scopes=["read"]).browser.page(path).text
    assert "30 succeeded" in text
    assert "USD" not in text


def test_lines_come_in_pages(visitor: Person, path: str) -> None:
    first = visitor.browser.page(path)
    assert "line 19" in first.text
    assert "line 20" not in first.text
    assert f'href="{path}?after=20#lines"' in first.html
    second = visitor.browser.page(f"{path}?after=20").text
    assert "line 20" in second
    assert "refused" in second


def test_lines_that_failed_are_found(visitor: Person, path: str) -> None:
    page = visitor.browser.page(f"{path}?only=failed")
    assert "refused" in page.text
    assert "line 19" not in page.text


def test_a_line_is_explained(visitor: Person, path: str) -> None:
    page = visitor.browser.page(f"{path}/line?id=line%203").text
    for said in (
        "Line 4",
        "Succeeded",
        "1,000 in, 500 out",
        "Where is my parcel?",
        '"text": "yes"',
    ):
        assert said in page
    assert "after the discount × (1 − 0.5) 0.00 002" in page


def test_htmx_gets_the_parts_alone(visitor: Person, path: str) -> None:
    htmx = {"hx-request": "true"}
    live = visitor.browser.get(path, **htmx, **{"hx-target": "live"})
    assert "Its way" in live.text
    assert "<html" not in live.html
    drawer = visitor.browser.get(f"{path}/line?id=refused", **htmx, **{"hx-target": "drawer"})
    assert "Line 31" in drawer.text
    assert "<html" not in drawer.html


def test_the_results_are_downloads(visitor: Person, path: str) -> None:
    output = visitor.browser.get(f"{path}/output")
    assert output.headers["content-disposition"].startswith("attachment;")
    assert output.headers["content-security-policy"]
    lines = [json.loads(line) for line in output.body.splitlines()]
    assert [line["custom_id"] for line in lines] == [f"line {number}" for number in range(30)]
    errors = visitor.browser.get(f"{path}/errors")
    assert json.loads(errors.body)["custom_id"] == "refused"


def test_its_events_are_those_of_the_api(
    visitor: Person, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "LONGEST", 0.05)
    stream = visitor.browser.get(f"{path}/events")
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert b"event: batch.completed" in stream.body


def test_failed_lines_are_retried_after_a_page_that_says_so(visitor: Person, path: str) -> None:
    asked = visitor.browser.page(f"{path}/retry")
    assert "new batch of the 1 lines that failed" in asked.text
    done = visitor.browser.post(f"{path}/retry")
    assert done.status == 303
    assert "Retry of" in visitor.browser.page(done.location).text
    again = visitor.browser.post(f"{path}/retry")
    assert again.status == 400
    assert "has retried these lines" in again.text


def test_a_batch_is_cancelled_after_a_page_that_says_so(visitor: Person) -> None:
    running = ran.submitted([factories.chat_line("a")], visitor.caller)
    path = f"/console/batches/{ids.render('batch', running.id)}"
    assert "This cannot be undone" in visitor.browser.page(f"{path}/cancel").text
    assert visitor.browser.post(f"{path}/cancel").location == path
    assert ran.again(running.id).status == BatchStatus.CANCELLING


def test_every_fault_of_a_file_is_listed(visitor: Person) -> None:
    found = made.everything(visitor.caller)
    page = visitor.browser.page(f"/console/batches/{found.failed}")
    assert "What is wrong in the file" in page.text
    for number in range(1, len(HOSTILE) + 1):
        assert f"Line {number}" in page.text
