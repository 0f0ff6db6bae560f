"""The list of batches: filters in the address, pages, and actions on a selection."""

import pytest

from tests import factories, ran
from tests.billing import REFUSED
from tests.integration.console.conftest import Person
from tests.ran import answered
from xalen_batch import db, ids
from xalen_batch.console import batches
from xalen_batch.states import BatchStatus

LIST = "/console/batches"


def test_an_empty_list_says_what_to_do_first(visitor: Person) -> None:
    page = visitor.browser.page(LIST)
    assert "No batch yet" in page.text
    assert 'href="/console/batches/new"' in page.html


def test_filters_are_in_the_address(visitor: Person) -> None:
    with db.transaction() as session:
        for number, team in enumerate(("search", "shop")):
            file = factories.input_file(session, visitor.caller, b"{}", filename=f"{team}.jsonl")
            factories.batch(
                session,
                visitor.caller,
                file,
                meta={"team": team},
                status=("validating", "completed")[number],
            )
    for query, shown, hidden in (
        ("note=team%3Dshop", "shop.jsonl", "search.jsonl"),
        ("status=validating", "search.jsonl", "shop.jsonl"),
    ):
        text = visitor.browser.page(f"{LIST}?{query}").text
        assert shown in text
        assert hidden not in text
    assert "No batch fits the filter" in visitor.browser.page(f"{LIST}?note=team%3Dnone").text


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("status=odd", "status: choose one of"),
        ("days=9", "days: choose one of"),
        ("schedule=nightly", "send the id of one"),
        ("note=team", "write it as key=value"),
        ("after=x", "is not the id of a batch"),
        ("n=x", "Invalid n: should be an integer"),
    ],
)
def test_a_wrong_filter_is_named(visitor: Person, query: str, says: str) -> None:
    seen = visitor.browser.get(f"{LIST}?{query}")
    assert seen.status == 400
    assert says in seen.text.replace("`", "")


def test_it_comes_in_pages(visitor: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "ON_PAGE", 2)
    with db.transaction() as session:
        file = factories.input_file(session, visitor.caller, b"{}")
        made = [factories.batch(session, visitor.caller, file) for _ in range(3)]
    names = [ids.render("batch", batch.id) for batch in made]
    first = visitor.browser.page(f"{LIST}?days=7")
    assert names[0] not in first.html
    older = f"{LIST}?days=7&amp;after={names[1]}"
    assert f'href="{older}"' in first.html
    assert names[0] in visitor.browser.page(older.replace("&amp;", "&")).html


def test_a_selection_is_cancelled_after_a_page_that_says_so(visitor: Person) -> None:
    running = [ran.submitted([factories.chat_line("a")], visitor.caller) for _ in range(2)]
    ended = ran.ended({"a": answered()}, visitor.caller)
    chosen = [("ids", ids.render("batch", batch.id)) for batch in (*running, ended)]
    visitor.browser.page(LIST)
    asked = visitor.browser.post(f"{LIST}/act", [("action", "cancel"), *chosen])
    assert "Cancel 2 of 3 chosen" in asked.text
    assert ran.again(running[0].id).status == BatchStatus.IN_PROGRESS
    done = visitor.browser.post(f"{LIST}/act", [("action", "cancel"), ("sure", "yes"), *chosen])
    assert done.location == f"{LIST}?did=cancel&n=2&of=3"
    assert "2 batches of 3 will end" in visitor.browser.page(done.location).text
    assert {ran.again(batch.id).status for batch in running} == {BatchStatus.CANCELLING}
    assert ran.again(ended.id).status == BatchStatus.COMPLETED


def test_a_selection_is_retried(visitor: Person) -> None:
    ended = ran.ended({"a": REFUSED}, visitor.caller)
    visitor.browser.page(LIST)
    fields = [("action", "retry"), ("ids", ids.render("batch", ended.id)), ("sure", "yes")]
    assert visitor.browser.post(f"{LIST}/act", fields).location == f"{LIST}?did=retry&n=1&of=1"
    assert "1 batch of 1 retried" in visitor.browser.page(f"{LIST}?did=retry&n=1&of=1").text


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ([("action", "cancel")], "no batch is chosen"),
        ([("action", "drop"), ("ids", "x")], "choose cancel or retry"),
        ([("action", "cancel"), ("ids", "batch_x")], "No such Batch object"),
    ],
)
def test_a_wrong_selection_is_told(
    visitor: Person, fields: list[tuple[str, str]], says: str
) -> None:
    visitor.browser.page(LIST)
    seen = visitor.browser.post(f"{LIST}/act", fields)
    assert seen.status in (400, 404)
    assert says in seen.text.replace("`", "")
