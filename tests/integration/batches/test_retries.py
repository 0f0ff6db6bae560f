"""Retries: which lines they take, once each, and what they refuse."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests import factories, ran
from tests.ran import BUSY, answered
from xalen_batch import db, files, ids, storage
from xalen_batch.accounts.accounts import Owner
from xalen_batch.batches import retries
from xalen_batch.billing import invoices
from xalen_batch.errors import InvalidRequest, NotFound
from xalen_batch.models import Batch, File
from xalen_batch.pipeline import sweeps, validate
from xalen_batch.states import BatchStatus, LineError
from xalen_batch.validation.file_type import UTF8_BOM

pytestmark = pytest.mark.usefixtures("database", "valkey")

ENDINGS = {
    "first": BUSY,
    "fine": answered(),
    "slow": LineError.REQUEST_TIMEOUT,
    "late": None,
}


def owner_of(batch: Batch) -> Owner:
    return Owner(batch.account_id, batch.livemode)


def retry(batch: Batch, owner: Owner | None = None, **asked: Any) -> Batch:
    with db.transaction() as session:
        return retries.create(
            session, owner or owner_of(batch), ids.render("batch", batch.id), **asked
        )


def validated(batch: Batch) -> Batch:
    validate.run(batch.id)
    return ran.again(batch.id)


def content(batch: Batch) -> bytes:
    return b"".join(storage.chunks(storage.key(batch.input_file_id)))


def names(batch: Batch) -> list[str]:
    return [json.loads(line)["custom_id"] for line in content(batch).splitlines()]


def refusal(batch: Batch, **asked: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        retry(batch, **asked)
    return caught.value


@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_retry_takes_the_failed_and_cancelled_lines_byte_for_byte(is_sealed: bool) -> None:
    lines = factories.jsonl([factories.chat_line(name) for name in ENDINGS])
    first = ran.submitted(UTF8_BOM + lines.replace(b"\n", b"\r\n"), meta={"team": "search"})
    first = ran.end(first.id, {name: how for name, how in ENDINGS.items() if how})
    assert first.status == BatchStatus.CANCELLED
    if is_sealed:
        first = ran.sealed(first)
    made = retry(first)
    assert (made.retry_of, made.meta, made.endpoint) == (
        first.id,
        {"team": "search"},
        first.endpoint,
    )
    assert made.retry_codes == ["batch_cancelled", "http_503", "request_timeout"]
    made = validated(made)
    assert (made.status, made.total) == (BatchStatus.IN_PROGRESS, 3)
    wanted = [factories.chat_line(name) for name in ("first", "slow", "late")]
    assert content(made) == factories.jsonl(wanted)
    with db.reading() as session:
        file = session.get_one(File, made.input_file_id)
    assert file.size == len(content(made))
    # The first batch and its invoice are as they were.
    assert ran.again(first.id).__dict__ | {"_sa_instance_state": 0} == first.__dict__ | {
        "_sa_instance_state": 0
    }


def test_a_retry_is_billed_by_itself_at_the_prices_of_its_creation() -> None:
    first = ran.ended(ENDINGS, price_snapshot={factories.CHAT_MODEL: {"input": "7", "output": "7"}})
    made = validated(retry(first))
    assert made.price_snapshot[factories.CHAT_MODEL] == {"input": "0.02", "output": "0.04"}
    made = ran.end(made.id, {"first": answered(), "slow": answered(), "late": BUSY})
    with db.reading() as session:
        bills = [invoices.of_batch(session, batch) for batch in (first, made)]
    by_price = [
        sum((line.quantity or 0) for line in bill.lines if line.kind == "usage") for bill in bills
    ]
    assert by_price == [1_500, 3_000]


def test_codes_choose_lines_and_each_line_is_retried_once() -> None:
    first = ran.ended(ENDINGS)
    slow = validated(retry(first, codes=["request_timeout"]))
    assert names(slow) == ["slow"]
    # Without codes a retry takes all lines that no other retry has taken.
    others = retry(first)
    assert others.retry_codes == ["batch_cancelled", "http_503"]
    error = refusal(first)
    assert error.code == "already_retried"
    assert "validating" in error.message
    slow = ran.end(slow.id, {"slow": LineError.REQUEST_TIMEOUT})
    error = refusal(first, codes=["request_timeout"])
    assert error.code == "already_retried"
    assert f"Retry {ids.render('batch', slow.id)}" in error.message
    assert names(validated(retry(slow))) == ["slow"]


def test_a_retry_that_failed_validation_takes_no_line(configure: Callable[..., None]) -> None:
    first = ran.ended(ENDINGS)
    configure(quota_enqueued_lines=2)
    made = validated(retry(first))
    assert made.status == BatchStatus.FAILED
    configure(quota_enqueued_lines=1_000)
    assert validated(retry(first)).status == BatchStatus.IN_PROGRESS


@pytest.mark.parametrize(
    ("columns", "endings", "code", "said"),
    [
        ({}, {"one": answered()}, "nothing_to_retry", "No line of batch_"),
        ({"status": "failed"}, None, "batch_not_retryable", "failed validation"),
        ({"status": "in_progress"}, None, "batch_not_ended", "is in_progress"),
        ({"status": "validating"}, None, "batch_not_ended", "is validating"),
        ({"ledger": "2026-11-29"}, None, "batch_not_retryable", "live calls"),
        ({"call": "flex"}, None, "batch_not_retryable", "one queued call"),
    ],
)
def test_what_cannot_be_retried_is_refused_with_the_reason(
    columns: dict[str, Any], endings: dict[str, Any] | None, code: str, said: str
) -> None:
    if endings is None:
        with db.transaction() as session:
            caller = factories.caller(session)
            batch = factories.batch(
                session, caller, factories.input_file(session, caller, b""), **columns
            )
    else:
        batch = ran.ended(endings)
    error = refusal(batch)
    assert (error.code, error.param) == (code, "batch_id")
    assert said in error.message


def test_an_unknown_code_is_refused_with_the_codes_that_there_are() -> None:
    error = refusal(ran.ended(ENDINGS), codes=["http_503", "nope\x1b"])
    assert (error.code, error.param) == ("nothing_to_retry", "codes")
    assert error.message.endswith("batch_cancelled (1), http_503 (1), request_timeout (1).")
    assert "'nope\\x1b'" in error.message


def test_invalid_lines_are_not_retried() -> None:
    lines = [factories.chat_line("one"), factories.chat_line("two", model="none")]
    batch = ran.end(ran.submitted(lines, on_invalid="skip").id, {"one": answered()})
    error = refusal(batch)
    assert error.code == "nothing_to_retry"
    assert "1 were skipped by validation" in error.message


def test_a_batch_of_another_account_or_mode_is_not_found() -> None:
    first = ran.ended(ENDINGS)
    with db.transaction() as session:
        stranger = factories.caller(session)
    for owner in (stranger, Owner(first.account_id, not first.livemode)):
        with pytest.raises(NotFound):
            retry(first, owner)


def test_a_deleted_input_file_is_refused() -> None:
    first = ran.ended(ENDINGS)
    with db.transaction() as session:
        files.delete(session, owner_of(first), ids.render("file", first.input_file_id))
    error = refusal(first)
    assert error.code == "input_file_gone"
    assert "Upload the lines again" in error.message


def test_the_input_of_the_first_batch_stays_until_the_retry_has_read_it() -> None:
    first = ran.ended(ENDINGS)
    made = retry(first)
    with (
        pytest.raises(InvalidRequest, match=ids.render("batch", made.id)),
        db.transaction() as session,
    ):
        files.delete(session, owner_of(first), ids.render("file", first.input_file_id))
    with db.transaction() as session:
        session.get_one(File, first.input_file_id).expires_at = first.created_at
    assert not expired(first)
    assert validated(made).status == BatchStatus.IN_PROGRESS
    assert expired(first)


def expired(batch: Batch) -> bool:
    """Whether the sweep of expired files deletes the batch's input."""
    for _ in sweeps.EXPIRED.walk():
        pass
    with db.reading() as session:
        return session.get_one(File, batch.input_file_id).deleted_at is not None


def test_an_input_that_is_lost_fails_the_retry_with_the_reason() -> None:
    first = ran.ended(ENDINGS)
    made = retry(first)
    storage.delete(storage.key(first.input_file_id))
    made = validated(made)
    assert made.status == BatchStatus.FAILED
    assert [(error["code"], error["param"]) for error in made.errors or ()] == [
        ("file_not_found", "retry_of")
    ]


def test_two_requests_at_once_take_each_line_once() -> None:
    first = ran.ended(ENDINGS)

    def ask(_: int) -> str:
        try:
            return ids.render("batch", retry(first).id)
        except InvalidRequest as error:
            return str(error.code)

    with ThreadPoolExecutor(4) as pool:
        found = sorted(pool.map(ask, range(4)))
    assert found[:3] == ["already_retried"] * 3
    assert found[3].startswith("batch_")


def test_a_family_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "MOST_RETRIES", 2)
    first = batch = ran.ended({"one": BUSY})
    for _ in range(2):
        batch = ran.end(validated(retry(batch)).id, {"one": BUSY})
    error = refusal(batch)
    assert error.code == "too_many_retries"
    with db.reading() as session:
        assert [found.id for found in retries.of(session, first)][-1] == batch.id
        assert len(retries.family(session, batch.id)) == 3


def test_a_storage_quota_counts_the_new_input(configure: Callable[..., None]) -> None:
    first = ran.ended(ENDINGS)
    with db.reading() as session:
        size = session.get_one(File, first.input_file_id).size
    configure(quota_storage_bytes=size + 10)
    made = validated(retry(first))
    assert made.status == BatchStatus.FAILED
    assert [error["code"] for error in made.errors or ()] == ["storage_limit_exceeded"]
