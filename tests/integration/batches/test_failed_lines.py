"""Failed lines: the same numbers from rows and from sealed columns, in steps."""

import pytest
from sqlalchemy import delete

from tests import factories, ran
from tests.conftest import as_owner
from tests.ran import BUSY, answered
from xalen_batch.batches import failed_lines
from xalen_batch.models import Batch, Result
from xalen_batch.pipeline import seal
from xalen_batch.states import LineError

pytestmark = pytest.mark.usefixtures("database", "valkey")


def forget_rows(batch: Batch) -> None:
    with as_owner() as session:
        session.execute(delete(Result).where(Result.batch_id == batch.id))


@pytest.mark.parametrize("step", [2, 10_000])
def test_numbers_are_the_same_before_and_after_sealing(
    step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failed_lines, "STEP", step)
    monkeypatch.setattr(seal, "LINES_AT_ONCE", step)
    endings = {
        "one": answered(),
        "two": BUSY,
        "three": LineError.REQUEST_TIMEOUT,
        "four": BUSY,
        "five": None,
    }
    lines = [factories.chat_line(name) for name in endings]
    # A blank line counts as a line.
    content = factories.jsonl(lines[:2]) + b"\n" + factories.jsonl(lines[2:])
    batch = ran.end(ran.submitted(content).id, {name: how for name, how in endings.items() if how})
    expected = {
        "http_503": [2, 5],
        "request_timeout": [4],
        "batch_cancelled": [6],
        "batch_expired": [],
    }
    assert {code: list(failed_lines.numbers(batch, [code])) for code in expected} == expected
    assert list(failed_lines.numbers(batch, list(expected))) == [2, 4, 5, 6]
    batch = ran.sealed(batch)
    forget_rows(batch)
    assert {code: list(failed_lines.numbers(batch, [code])) for code in expected} == expected
    assert list(failed_lines.numbers(batch, list(expected))) == [2, 4, 5, 6]


def test_invalid_lines_that_were_skipped_are_no_failed_lines() -> None:
    lines = [factories.chat_line("one"), factories.chat_line("two", model="none")]
    batch = ran.end(ran.submitted(lines, on_invalid="skip").id, {"one": BUSY})
    assert list(failed_lines.numbers(batch, ["http_503", "model_not_found"])) == [1]
