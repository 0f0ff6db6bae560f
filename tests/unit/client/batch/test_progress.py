"""Progress is a plain line on stderr, if stderr is a terminal."""

import sys
from typing import Any

import pytest
from openai.types import Batch

from xalen.batch.progress import described, reporter


def batch(status: str, **fields: Any) -> Batch:
    counts = {"total": 1200, "completed": 900, "failed": 3, "cancelled": 0, "expired": 0}
    return Batch.construct(id="batch_1", status=status, request_counts=counts, **fields)


def test_the_line_has_the_counts_and_what_the_batch_waits_for() -> None:
    assert described(batch("in_progress")) == "batch_1 in_progress 903/1,200 lines, 3 failed"
    waiting = batch("in_progress", waiting={"reason": "no_worker", "message": "No worker runs."})
    assert described(waiting).endswith("3 failed. Waiting: No worker runs.")
    assert described(Batch.construct(id="batch_1", status="validating")) == "batch_1 validating"


def test_nothing_is_written_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for progress in (None, False):
        reporter(progress)(batch("in_progress"))
    assert capsys.readouterr() == ("", "")


def test_a_line_for_each_status_if_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    report = reporter(True)
    for status in ("validating", "in_progress", "in_progress", "completed"):
        report(batch(status))
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in told] == ["validating", "in_progress", "completed"]


def test_a_terminal_has_one_line_that_fits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    report = reporter(None)
    report(batch("in_progress"))
    report(batch("completed"))
    assert capsys.readouterr().err == "\r\x1b[Kbatch_1 in_progress\r\x1b[Kbatch_1 completed 9\n"


def test_a_function_gets_every_state() -> None:
    seen: list[str] = []
    report = reporter(lambda batch: seen.append(batch.status))
    report(batch("validating"))
    report(batch("completed"))
    assert seen == ["validating", "completed"]
