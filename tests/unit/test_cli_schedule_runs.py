"""Requests added to an inbox, and runs that are asked for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.fake_api import Api, serving
from tests.unit.schedule_answers import RUN, SCHEDULE, body, error, file, listed, ok, run, said
from xalen_batch.cli import client as client_module
from xalen_batch.cli.schedules import add


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(client_module, "PAUSES", ())
    with serving() as server:
        yield server


class TestAdd:
    def test_lines_go_in_pieces_each_with_a_key_of_its_own(self, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(add, "PIECE_LINES", 2)
        answer = {"schedule_id": "sched_1", "accepted": 1, "known": 1, "pending": 1234, "next_fire_at": 4132081800}
        api.answers = [ok(answer), ok(answer), ok(SCHEDULE)]
        lines = [b'{"a": 1}\n', b"\n", b'{"a": 2}\r\n', b'{"a": 3}']
        result = run(api, "add", "sched_1", "-", input=b"".join(lines))
        assert (result.exit_code, result.stdout) == (0, "")
        assert [body for *_, body in api.requests[:2]] == [lines[0] + lines[1], lines[2] + lines[3]]
        assert api.requests[0][2]["idempotency-key"] != api.requests[1][2]["idempotency-key"]
        assert "2 requests accepted, 2 known already; 1,234 pending." in result.stderr
        assert "Thu 2026-11-26 02:30 +01:00, 2100-12-10 00:30 UTC." in result.stderr

    def test_a_piece_holds_no_more_bytes_than_it_may_and_a_long_line_is_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(add, "PIECE_BYTES", 10)
        path = tmp_path / "in.jsonl"
        path.write_bytes(b"1234\n1234\n\n123456789012\n\n1\n")
        pieces = [(piece.first, piece.last, piece.content) for piece in add._pieces(path)]
        assert pieces == [(1, 2, b"1234\n1234\n"), (4, 4, b"123456789012\n"), (5, 6, b"\n1\n")]

    @pytest.mark.parametrize(
        ("message", "words"),
        [
            ("Line 2 (custom_id 'x'): url is missing.", "in.jsonl:4 (custom_id 'x'): url is missing."),
            ("Line 2: It is used on line 1.", "in.jsonl:4: It is used on line 1. [HTTP 400] (It counts from 1 at line 3.)"),
            ("The inbox is full.", "in.jsonl, lines 3 to 4: The inbox is full."),
        ],
    )
    def test_it_stops_at_what_is_refused_and_says_what_is_there_already(
        self, message: str, words: str, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(add, "PIECE_LINES", 2)
        answer = {"schedule_id": "sched_1", "accepted": 2, "known": 0, "pending": 2, "next_fire_at": None}
        api.answers = [ok(answer), error(400, message)]
        result = run(api, "add", "sched_1", file(tmp_path, *[{"n": n} for n in range(6)]), "--json")
        assert (result.exit_code, result.stdout, len(api.requests)) == (1, "", 2)
        assert words in said(result)
        assert "Lines 1 to 2 are accepted; add the whole file again" in said(result)

    @pytest.mark.parametrize("content", [b"", b"\n \n"])
    def test_a_file_without_requests_is_an_error(self, content: bytes, api: Api) -> None:
        result = run(api, "add", "sched_1", "-", input=content)
        assert (result.exit_code, api.requests) == (1, [])
        assert "has no requests" in result.stderr

    def test_requests_of_a_paused_schedule_are_told_what_they_wait_for(self, api: Api) -> None:
        api.answers = [ok({"schedule_id": "sched_1", "accepted": 1, "known": 0, "pending": 1, "next_fire_at": None})]
        result = run(api, "add", "sched_1", "-", input=b"{}\n")
        assert result.exit_code == 0
        assert "`xalen-batch schedules run sched_1` runs them" in said(result)


class TestRun:
    def test_the_batch_alone_is_on_stdout(self, api: Api) -> None:
        api.answers = [ok(RUN | {"state": "running"})]
        result = run(api, "run", "sched_1")
        assert (result.exit_code, result.stdout) == (0, "batch_1\n")

    def test_one_that_waits_is_waited_for_and_then_its_batch(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("xalen_batch.cli.schedules.runs.LOOK_EVERY", 0.01)
        waiting = RUN | {"state": "waiting", "batch_id": None, "reason": "overlap", "message": "run_0 has not ended."}
        counts = {"total": 2, "completed": 1, "failed": 1}
        batch = {"id": "batch_1", "status": "completed", "input_file_id": "f", "errors": None, "request_counts": counts}
        api.answers = [ok(waiting), listed(waiting), listed(RUN | {"state": "running"}), ok(batch)]
        result = run(api, "run", "sched_1", "--wait")
        assert (result.exit_code, result.stdout) == (3, "batch_1\n")
        assert "run_1 is waiting: run_0 has not ended." in result.stderr
        assert "batch_1 completed: 1 of 2 lines succeeded" in result.stderr

    def test_nothing_to_run_is_no_error_and_names_no_batch(self, api: Api) -> None:
        api.answers = [ok(RUN | {"state": "skipped", "batch_id": None, "reason": "empty", "message": "No request\x1b[2J had arrived."})]
        result = run(api, "run", "sched_1", "--wait")
        assert (result.exit_code, result.stdout) == (0, "")
        assert "No request\\x1b[2J had arrived." in result.stderr

    def test_one_that_cannot_begin_is_an_error(self, api: Api) -> None:
        api.answers = [ok(RUN | {"state": "failed", "batch_id": None, "message": "The file is gone."})]
        result = run(api, "run", "sched_1", "--json")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "could not begin: The file is gone." in result.stderr

    def test_the_time_to_wait_counts_for_the_run_too(self, api: Api) -> None:
        api.answers = [ok(RUN | {"state": "waiting", "batch_id": None})]
        assert run(api, "run", "sched_1", "--wait", "--timeout", "0").exit_code == 5

    def test_a_backfill_names_its_times_and_shows_its_runs(self, api: Api) -> None:
        api.answers = [listed(RUN)]
        result = run(api, "backfill", "sched_1", "--from", "2026-11-01", "--to", "2026-11-08T06:00+01:00")
        assert body(api, 0) == {"from": "2026-11-01T00:00:00", "to": "2026-11-08T06:00:00+01:00"}
        assert "Wed 2026-11-25 02:30 +01:00" in result.stdout
