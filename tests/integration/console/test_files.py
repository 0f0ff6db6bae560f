"""Files in a browser."""

import pytest

from tests import factories
from tests.integration.console.conftest import Person
from xalen_batch import db, ids
from xalen_batch.models import File

CONTENT = factories.jsonl([factories.chat_line("a")])


@pytest.fixture
def path(visitor: Person) -> str:
    with db.transaction() as session:
        file = factories.input_file(session, visitor.caller, CONTENT, filename="tickets.jsonl")
        return f"/console/files/{ids.render('file', file.id)}"


def test_a_file_is_listed_shown_and_downloaded(visitor: Person, path: str) -> None:
    assert f'href="{path}"' in visitor.browser.page("/console/files?purpose=batch").html
    assert "No file here" in visitor.browser.page("/console/files?purpose=batch_output").text
    page = visitor.browser.page(path)
    assert f"{len(CONTENT)} bytes" in page.text
    seen = visitor.browser.get(f"{path}/content")
    assert seen.body == CONTENT
    assert "tickets.jsonl" in seen.headers["content-disposition"]


def test_a_file_is_deleted_after_a_page_that_says_so(visitor: Person, path: str) -> None:
    assert "This cannot be undone" in visitor.browser.page(f"{path}/delete").text
    assert visitor.browser.post(f"{path}/delete").location == "/console/files"
    assert visitor.browser.get(path).status == 404
    with db.reading() as session:
        file = session.get_one(File, ids.parse("file", path.rpartition("/")[2]))
    assert file.deleted_at is not None


def test_a_file_that_a_batch_reads_is_kept(visitor: Person, path: str) -> None:
    with db.transaction() as session:
        file = session.get_one(File, ids.parse("file", path.rpartition("/")[2]))
        factories.batch(session, visitor.caller, file)
    visitor.browser.page(f"{path}/delete")
    seen = visitor.browser.post(f"{path}/delete")
    assert seen.status == 400
    assert "is the input of batch" in seen.text


def test_a_wrong_purpose_is_named(visitor: Person) -> None:
    assert "purpose: choose one of" in visitor.browser.get("/console/files?purpose=odd").text
