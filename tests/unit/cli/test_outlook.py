"""The outlook of a batch on the terminal, and reasons that pass by themselves."""

from typing import Any

import pytest

from xalen_batch.cli import outlook, waits

Said = pytest.CaptureFixture[str]


def batch(**found: Any) -> dict[str, Any]:
    return {
        "id": "batch_1",
        "status": "in_progress",
        "expires_at": 1795888000,
        "waiting": None,
        "execution_window": None,
        "outlook": {
            "lines_left": 1_234,
            "lines_ahead": 0,
            "basis": "measured",
            "lines_per_second": 12.5,
            "measured_seconds": 60.0,
            "estimated_end": 1795800000,
            "is_late": False,
            "at_risk_since": None,
            "errors": [],
            **found,
        },
    }


ERRORS = [
    {"code": "http_503", "count": 1_200, "line": 30, "custom_id": "a\x1b"},
    {"code": "bad_answer", "count": 1, "line": None, "custom_id": None},
]


def test_show_has_the_estimate_with_its_basis() -> None:
    rows = dict(outlook.shown(batch()))
    assert rows["estimated_end"] == (
        "2026-11-27 17:20 UTC at the pace of the last 60 s, 12.5 lines/s"
    )
    assert "at_risk" not in rows
    average = batch(basis="average", measured_seconds=7_300.0)
    assert "at its average pace of 2 h" in dict(outlook.shown(average))["estimated_end"]
    none = batch(basis="none", estimated_end=None, lines_per_second=None, measured_seconds=None)
    assert dict(outlook.shown(none))["estimated_end"] == "unknown: no line has ended"


def test_errors_are_shown_with_an_example() -> None:
    rows = [text for name, text in outlook.shown(batch(errors=ERRORS)) if name == "errors_so_far"]
    assert rows == ["http_503, 1,200 lines, such as line 30 (a\\x1b)", "bad_answer, 1 line"]


def test_a_watcher_hears_of_a_risk_and_of_each_code_once(capsys: Said) -> None:
    reporter = outlook.RiskReporter()
    for found in (
        batch(),
        batch(is_late=True, errors=ERRORS[:1]),
        batch(is_late=True, errors=ERRORS),
    ):
        reporter.update(found)
        reporter.update(found)
    # A state without an outlook, as in an event, changes nothing.
    reporter.update({"id": "batch_1"})
    reporter.update(batch(is_late=True))
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said] == [
        "batch_1 will most likely miss its deadline, 2026-11-28 17",
        "batch_1 has errors",
        "batch_1 has errors",
    ]
    assert "it would end 2026-11-27 17:20 UTC" in said[0]


def test_a_usual_reason_is_told_if_it_lasts(capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(waits.time, "monotonic", lambda: clock[0])
    reporter = waits.WaitReporter()
    turn = batch() | {"waiting": {"reason": "turn", "message": "Its turn.", "model": None}}
    for clock[0], shown in ((0.0, turn), (4.0, turn), (4.5, batch()), (5.0, turn), (9.9, turn)):
        reporter.update(shown)
    assert capsys.readouterr().err == ""
    clock[0] = 10.0
    reporter.update(turn)
    reporter.update(batch())
    assert capsys.readouterr().err == "batch_1 waits. Its turn.\nbatch_1 goes on.\n"
