"""A new batch in a browser: every wrong line is named, the file is mended, and it runs once."""

from collections.abc import Callable

import pytest

from tests import factories
from tests.integration.console.conftest import Browser, Person
from xalen_batch import db, ids
from xalen_batch.accounts.accounts import Caller
from xalen_batch.batches import lists
from xalen_batch.batches.lists import BatchFilters
from xalen_batch.models import Batch, File

NEW = "/console/batches/new"
GOOD = factories.jsonl([factories.chat_line(f"line {number}") for number in range(5)])
BAD = factories.jsonl(
    [
        factories.chat_line("same"),
        factories.chat_line("same"),
        factories.chat_line("c", model="mistral-smal-3-1"),
        factories.chat_line("d"),
    ]
)


def uploaded(browser: Browser, content: bytes = GOOD, query: str = "") -> str:
    """The id of an uploaded file, by the address of its check."""
    browser.page(NEW)
    seen = browser.upload(f"{NEW}/file?csrf={browser.csrf}{query}", content, "tickets.jsonl")
    assert seen.status == 303, seen.text
    return seen.location.partition("file_id=")[2]


def batches_of(caller: Caller) -> list[Batch]:
    with db.reading() as session:
        return lists.page(session, caller, BatchFilters(), limit=100, after=None).data


def test_every_wrong_line_is_named_with_its_remedy(visitor: Person) -> None:
    page = visitor.browser.page(f"{NEW}?file_id={uploaded(visitor.browser, BAD)}")
    assert "2 things are wrong, 2 lines are good" in page.text
    assert "Line 2 duplicate_custom_id custom_id" in page.text
    assert "Line 3 model_not_found body.model" in page.text
    assert "Did you mean mistral-small-3-1?" in page.text
    assert batches_of(visitor.caller) == []


def test_a_mended_file_takes_the_place_of_the_faulty_one(visitor: Person) -> None:
    faulty = uploaded(visitor.browser, BAD)
    mended = uploaded(visitor.browser, GOOD, f"&replaces={faulty}")
    assert "5 good lines" in visitor.browser.page(f"{NEW}?file_id={mended}").text
    assert visitor.browser.get(f"{NEW}?file_id={faulty}").status == 404
    with db.reading() as session:
        assert session.get_one(File, ids.parse("file", faulty)).deleted_at is not None


def test_the_estimate_comes_before_anything_runs(visitor: Person) -> None:
    page = visitor.browser.page(f"{NEW}?file_id={uploaded(visitor.browser)}").text
    assert "Estimate not payable Expected 0.00" in page
    assert "mistral-small-3-1 5 lines" in page
    for way in ("xalen-batch run tickets.jsonl", "client.batches.create", "curl http"):
        assert way in page


def made(visitor: Person, **fields: str) -> str:
    file_id = uploaded(visitor.browser)
    visitor.browser.page(f"{NEW}?file_id={file_id}")
    terms = {"file_id": file_id, "endpoint": "/v1/chat/completions", "nonce": "n", **fields}
    seen = visitor.browser.post(NEW, terms)
    assert seen.status == 303, seen.text
    return seen.location.rpartition("/")[2]


def test_it_makes_a_batch_with_its_terms(visitor: Person) -> None:
    id = made(
        visitor,
        completion_window="3d",
        metadata="team=search\n\ncost center = 4711 ",
        start="22:00",
        end="06:00",
        timezone="Europe/Berlin",
        days="mon",
    )
    [batch] = batches_of(visitor.caller)
    assert ids.render("batch", batch.id) == id
    assert batch.completion_window == "3d"
    assert batch.meta == {"team": "search", "cost center": "4711"}
    assert batch.execution_window == {
        "start": "22:00",
        "end": "06:00",
        "timezone": "Europe/Berlin",
        "days": ["mon"],
    }


def test_two_clicks_make_one_batch(visitor: Person) -> None:
    file_id = uploaded(visitor.browser)
    visitor.browser.page(f"{NEW}?file_id={file_id}")
    terms = {"file_id": file_id, "endpoint": "/v1/chat/completions", "nonce": "n"}
    answers = [visitor.browser.post(NEW, terms).location for _ in range(2)]
    assert answers[0] == answers[1]
    assert len(batches_of(visitor.caller)) == 1
    # A changed form is another batch.
    assert visitor.browser.post(NEW, {**terms, "metadata": "a=b"}).location != answers[0]


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"start": "25:00", "end": "06:00"}, "start", "should be a time of day"),
        ({"start": "22:00", "end": "06:00", "timezone": "Mars"}, "timezone", "IANA time zone"),
        ({"start": "22:00", "end": "22:00", "days": "mon"}, "start", "should end at another time"),
        ({"metadata": "team"}, "metadata", "Line 1 of the metadata is not key=value"),
        ({"metadata": "a=1\na=2"}, "metadata", "Line 2 of the metadata repeats"),
        ({"metadata": "k" * 65 + "=1"}, "metadata", "at most 16 keys"),
        ({"completion_window": "9h9"}, "completion_window", "is not a completion window"),
    ],
)
def test_an_error_stands_at_its_field_and_keeps_the_others(
    visitor: Person, fields: dict[str, str], field: str, says: str
) -> None:
    file_id = uploaded(visitor.browser)
    visitor.browser.page(f"{NEW}?file_id={file_id}")
    kept = {"metadata": "kept=yes"} if "metadata" not in fields else {"completion_window": "12h"}
    seen = visitor.browser.post(
        NEW,
        {"file_id": file_id, "endpoint": "/v1/chat/completions", "days": "mon", **kept, **fields},
    )
    assert seen.status == 400
    assert says in seen.text.replace("`", "")
    assert f'aria-describedby="{field}-err"' in seen.html
    assert f'id="{field}-err"' in seen.html
    assert "kept=yes" in seen.text or "<option selected>12h</option>" in seen.html
    assert batches_of(visitor.caller) == []


def test_invalid_lines_may_be_skipped(visitor: Person) -> None:
    file_id = uploaded(visitor.browser, BAD)
    visitor.browser.page(f"{NEW}?file_id={file_id}")
    terms = {"file_id": file_id, "endpoint": "/v1/chat/completions", "skip": "yes"}
    assert visitor.browser.post(NEW, terms).status == 303
    assert [batch.on_invalid for batch in batches_of(visitor.caller)] == ["skip"]


def test_an_upload_is_refused_before_its_bytes_are_read(
    visitor: Person, signed_in: Callable[..., Person]
) -> None:
    refused = visitor.browser.upload(f"{NEW}/file?csrf={'0' * 64}", GOOD)
    assert refused.status == 403
    reader = signed_in(scopes=["read"])
    reader.browser.page("/console/batches")
    assert reader.browser.upload(f"{NEW}/file?csrf={reader.browser.csrf}", GOOD).status == 403
    assert Browser(visitor.browser.port).upload(f"{NEW}/file", GOOD).status == 303
    with db.reading() as session:
        assert session.query(File).count() == 0


def test_an_empty_file_is_told(visitor: Person) -> None:
    visitor.browser.page(NEW)
    seen = visitor.browser.upload(f"{NEW}/file?csrf={visitor.browser.csrf}", b"")
    assert seen.status == 400
    assert "is empty" in seen.text
