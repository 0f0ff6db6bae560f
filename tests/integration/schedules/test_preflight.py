"""Preflight: creating a schedule reports the errors that its next run would meet."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tests import factories
from tests.factories import CHAT_MODEL, RERANK_MODEL, chat_line, rerank_line
from xalen_batch import db, ids, storage
from xalen_batch.accounts.accounts import Caller
from xalen_batch.billing.terms import Terms
from xalen_batch.errors import InvalidRequest
from xalen_batch.schedules import preflight

pytestmark = pytest.mark.usefixtures("database")

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
def caller(database: str) -> Caller:
    with db.transaction() as session:
        return factories.caller(session)


def upload(caller: Caller, lines: Any, **columns: Any) -> str:
    with db.transaction() as session:
        return ids.render("file", factories.input_file(session, caller, lines, **columns).id)


def refusal(caller: Caller, **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        preflight.check(caller, factories.definition(**fields), NOW)
    return refused.value


def test_what_would_run_is_let_through(caller: Caller) -> None:
    preflight.check(caller, factories.definition(), NOW)
    preflight.check(caller, factories.definition(source={"prefix": "in"}), NOW)
    # As it is, a file may hold anything between braces.
    preflight.check(
        caller,
        factories.definition(input_file_id=upload(caller, [chat_line("{{scheduled_x}}")])),
        NOW,
    )
    template = upload(
        caller,
        b"\xef\xbb\xbf"
        + factories.jsonl([chat_line("{{run_id}}-{{scheduled_time-6h:%H}}", "{{other}}")]),
    )
    preflight.check(caller, factories.definition(template_file_id=template), NOW)


def test_a_template_is_read_as_of_the_next_night(caller: Caller) -> None:
    # On the 25th both names are the same; on another night they are not.
    template = upload(caller, [chat_line("{{scheduled_date}}"), chat_line("2026-11-25")])
    error = refusal(caller, template_file_id=template)
    assert (error.code, error.param) == ("duplicate_custom_id", "template_file_id")
    assert (
        f"template_file_id: line 2 of {template}: custom_id '2026-11-25' is used on line 1 and"
        " again on line 2." in error.message
    )
    preflight.check(
        caller, factories.definition(template_file_id=template, cron="30 2 26 * *"), NOW
    )


def test_the_first_fault_is_told_with_the_number_of_the_others(caller: Caller) -> None:
    lines = [
        chat_line("a"),
        chat_line("b", "{{scheduled_date-1m}}"),
        chat_line("c", "{{run_idd}}"),
        {**chat_line("d"), "url": "/v1/rerank"},
        chat_line("e", "x" * 500),
    ]
    template = upload(caller, lines)
    error = refusal(caller, template_file_id=template)
    assert (error.code, error.param) == ("invalid_placeholder", "template_file_id")
    assert f"line 2 of {template}: '{{{{scheduled_date-1m}}}}' has no offset" in error.message
    assert error.message.endswith(" There are 2 more faults in it.")
    error = refusal(caller, input_file_id=template)
    assert (error.code, error.param) == ("placeholder_in_input_file", "input_file_id")
    assert "holds {{scheduled_date-1m}}" in error.message
    assert error.message.endswith(" There is 1 more fault in it.")
    error = refusal(
        caller, input_file_id=upload(caller, [chat_line("a", "Write {{name}} here."), lines[3]])
    )
    assert (error.code, error.param) == ("url_mismatch", "input_file_id")
    assert "line 2" in error.message
    assert "more" not in error.message


@pytest.mark.parametrize("field", ["input_file_id", "template_file_id"])
def test_the_file_must_be_there_for_this_owner_and_be_an_input(caller: Caller, field: str) -> None:
    with db.transaction() as session:
        other = factories.caller(session)
    lines = [chat_line("a")]
    gone = upload(caller, lines)
    storage.delete(storage.key(ids.parse("file", gone)))  # type: ignore[arg-type]
    told = {
        upload(other, lines): "there is no file",
        "file-0": "there is no file",
        upload(caller, lines, purpose="vision"): "purpose `vision`",
        upload(caller, lines, sha256=None, size=0): "not put together yet",
        gone: "content of .* is gone",
    }
    for file_id, message in told.items():
        with pytest.raises(InvalidRequest, match=message) as refused:
            preflight.check(caller, factories.definition(**{field: file_id}), NOW)
        assert refused.value.param == field


def test_an_endpoint_a_model_and_a_price_must_fit(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal(caller, input_file_id=upload(caller, [rerank_line("a")])).code == "url_mismatch"
    assert refusal(caller, template_file_id=upload(caller, b"\n")).code == "empty_file"
    monkeypatch.setattr(
        preflight.batches,
        "offered",
        lambda *_: Terms({CHAT_MODEL: {"input": "1"}}, {CHAT_MODEL: "simulated"}),
    )
    error = refusal(
        caller, input_file_id=upload(caller, [chat_line("a"), chat_line("b", model=RERANK_MODEL)])
    )
    assert (error.code, RERANK_MODEL in error.message) == ("model_not_priced", True)


def test_what_is_too_large_once_rendered_is_refused(
    caller: Caller, configure: Callable[..., None]
) -> None:
    template = upload(
        caller,
        [chat_line(f"{number}", "{{scheduled_time:" + "%A" * 40 + "}}") for number in range(10)],
    )
    configure(max_file_bytes=4_000)
    assert refusal(caller, template_file_id=template).code == "file_too_large"
    preflight.check(caller, factories.definition(input_file_id=template), NOW)
    configure(max_file_bytes=1_000_000, max_line_bytes=150)
    assert refusal(caller, template_file_id=template).code == "line_too_long"


def test_a_source_is_checked_without_being_read(caller: Caller) -> None:
    assert refusal(caller, source={"prefix": "../x"}).param == "source.prefix"
    assert refusal(caller, source={"folder": "/etc"}).param == "source.folder"
    assert (
        refusal(caller, source={"prefix": "in", "pattern": "{{scheduled_dat}}*"}).param
        == "source.pattern"
    )
