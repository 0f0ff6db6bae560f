"""Requests added to an inbox, and runs that are asked for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.fake_api import Api, serving
from tests.unit.cli.schedules.answers import RUN, SCHEDULE, body, error, file, listed, ok, run, said
from xalen_batch.cli import client as client_module
from xalen_batch.cli.schedules import add


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(client_module, "PAUSES", ())
    with serving() as server:
        yield server


class TestAdd:
    def test_a_key_that_may_not_read_is_told_what_was_accepted(self, api: Api) -> None:
        api.answers = [
            ok(
                {
                    "schedule_id": "sched_1",
                    "accepted": 1,
                    "known": 0,
                    "pending": None,
                    "next_fire_at": None,
                }
            )
        ]
        assert said(run(api, "add", "sched_1", "-", input=b"{}\n")) == "1 request accepted."

    def test_lines_go_in_pieces_each_with_a_key_of_its_own(
        self, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(add, "PIECE_LINES", 2)
        answer = {
            "schedule_id": "sched_1",
            "accepted": 1,
            "known": 1,
            "pending": 1234,
            "next_fire_at": 4132081800,
        }
        api.answers = [ok(answer), ok(answer), ok(SCHEDULE)]
        lines = [b'{"a": 1}\n', b"\n", b'{"a": 2}\r\n', b'{"a": 3}']
        result = run(api, "add", "sched_1", "-", input=b"".join(lines))
        assert (result.exit_code, result.stdout) == (0, "")
        assert [body for *_, body in api.requests[:2]] == [lines[0] + lines[1], lines[2] + lines[3]]
        assert api.requests[0][2]["idempotency-key"] != api.requests[1][2]["idempotency-key"]
        assert "2 requests accepted, 2 known already; 1,234 pending." in result.stderr
        assert "Thu 2026-11-26 02:30 +01:00, 2100-12-10 00:30 UTC." in result.stderr

    def test_a_piece_holds_no_more_bytes_than_it_may_and_a_long_line_is_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(add, "PIECE_BYTES", 10)
        path = tmp_path / "in.jsonl"
        path.write_bytes(b"1234\n1234\n\n123456789012\n\n1\n")
        pieces = [(piece.first, piece.last, piece.content) for piece in add._pieces(path)]
        assert pieces == [(1, 2, b"1234\n1234\n"), (4, 4, b"123456789012\n"), (5, 6, b"\n1\n")]

    @pytest.mark.parametrize(
        ("message", "words"),
        [
            (
                "Line 2 (custom_id 'x'): url is missing.",
                "in.jsonl:4 (custom_id 'x'): url is missing.",
            ),
            (
                "Line 2: It is used on line 1.",
                "in.jsonl:4: It is used on line 1. [HTTP 400] (It counts from 1 at line 3.)",
            ),
            ("The body cannot be read.", "in.jsonl, lines 3 to 4: The body cannot be read."),
        ],
    )
    def test_it_stops_at_what_is_refused_and_says_what_is_there_already(
        self, message: str, words: str, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(add, "PIECE_LINES", 2)
        answer = {
            "schedule_id": "sched_1",
            "accepted": 2,
            "known": 0,
            "pending": 2,
            "next_fire_at": None,
        }
        api.answers = [ok(answer), error(400, message)]
        result = run(api, "add", "sched_1", file(tmp_path, *[{"n": n} for n in range(6)]), "--json")
        assert (result.exit_code, result.stdout, len(api.requests)) == (1, "", 2)
        assert words in said(result)
        assert "Lines 1 to 2 are accepted; add the whole file again" in said(result)

    @pytest.mark.parametrize(
        ("status", "code"), [(404, None), (400, "schedule_ended"), (400, "no_inbox"), (403, None)]
    )
    def test_what_is_wrong_with_the_schedule_is_not_told_of_lines(
        self, status: int, code: str | None, api: Api
    ) -> None:
        api.answers = [error(status, "Give it a later ends_at.", code)]
        assert "Error: Give it a later --ends. [HTTP" in said(
            run(api, "add", "sched_1", "-", input=b"{}\n")
        )

    @pytest.mark.parametrize("content", [b"", b"\n \n"])
    def test_a_file_without_requests_is_an_error(self, content: bytes, api: Api) -> None:
        result = run(api, "add", "sched_1", "-", input=content)
        assert (result.exit_code, api.requests) == (1, [])
        assert "has no requests" in result.stderr

    def test_requests_of_a_paused_schedule_are_told_what_they_wait_for(self, api: Api) -> None:
        api.answers = [
            ok(
                {
                    "schedule_id": "sched_1",
                    "accepted": 1,
                    "known": 0,
                    "pending": 1,
                    "next_fire_at": None,
                }
            )
        ]
        result = run(api, "add", "sched_1", "-", input=b"{}\n")
        assert result.exit_code == 0
        assert "`xalen-batch schedules run sched_1` runs them" in said(result)


class TestRun:
    def test_the_batch_alone_is_on_stdout(self, api: Api) -> None:
        api.answers = [ok(RUN | {"state": "running"})]
        result = run(api, "run", "sched_1")
        assert (result.exit_code, result.stdout) == (0, "batch_1\n")

    def test_one_that_waits_is_waited_for_and_then_its_batch(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("xalen_batch.cli.schedules.runs.LOOK_EVERY", 0.01)
        waiting = RUN | {
            "state": "waiting",
            "batch_id": None,
            "reason": "overlap",
            "message": "run_0 has not ended.",
        }
        counts = {"total": 2, "completed": 1, "failed": 1}
        batch = {
            "id": "batch_1",
            "status": "completed",
            "input_file_id": "f",
            "errors": None,
            "request_counts": counts,
        }
        api.answers = [ok(waiting), listed(waiting), listed(RUN | {"state": "running"}), ok(batch)]
        result = run(api, "run", "sched_1", "--wait")
        assert (result.exit_code, result.stdout) == (3, "batch_1\n")
        assert "run_1 is waiting: run_0 has not ended." in result.stderr
        assert "batch_1 completed: 1 of 2 lines succeeded" in result.stderr

    @pytest.mark.parametrize(("options", "exit_code"), [([], 0), (["--wait"], 3)])
    def test_nothing_to_run_is_told_and_to_one_that_waits_it_is_no_success(
        self, options: list[str], exit_code: int, api: Api
    ) -> None:
        api.answers = [
            ok(
                RUN
                | {
                    "state": "skipped",
                    "batch_id": None,
                    "reason": "empty",
                    "message": "No request\x1b[2J had arrived.",
                }
            )
        ]
        result = run(api, "run", "sched_1", *options)
        assert (result.exit_code, result.stdout) == (exit_code, "")
        assert "No request\\x1b[2J had arrived." in result.stderr
        assert ("run_1 was skipped, so there is no batch to wait for." in result.stderr) == bool(
            options
        )

    def test_one_for_another_time_names_it_and_is_told_with_its_dates(self, api: Api) -> None:
        api.answers = [
            ok(RUN | {"state": "running", "trigger": "manual", "as_of": 1795138200}),
            listed(RUN | {"as_of": 1795138200}),
        ]
        result = run(api, "run", "sched_1", "--for", "2026-11-20T02:30")
        assert (result.exit_code, result.stdout, body(api, 0)) == (
            0,
            "batch_1\n",
            {"as_of": "2026-11-20T02:30:00"},
        )
        assert "run_1 is running, with the dates of Fri 2026-11-20 02:30 +01:00." in said(result)
        header, _, row = run(api, "runs", "sched_1").stdout.splitlines()
        assert "dates of" in header
        assert "Wed 2026-11-25 02:30 +01:00   Fri 2026-11-20 02:30 +01:00" in row

    def test_one_that_waits_for_its_window_says_so(self, api: Api) -> None:
        waiting = RUN | {
            "state": "running",
            "reason": "execution_window",
            "message": "Its batch waits for its execution window.",
        }
        api.answers = [ok(waiting), listed(waiting), listed(SCHEDULE | {"last_run": waiting})]
        assert "run_1 is running: Its batch waits for its execution window." in said(
            run(api, "run", "sched_1")
        )
        shown = run(api, "runs", "sched_1").stdout
        assert "execution_window" in shown.splitlines()[2]
        assert shown.endswith("running: Its batch waits for its execution window.\n")
        assert "running (execution_window)" in run(api, "list").stdout

    def test_what_the_batch_says_is_named_by_its_command(self, api: Api) -> None:
        refused = RUN | {
            "state": "failed",
            "reason": "batch_failed",
            "message": "batch_1 did not pass; its `errors` name every line.",
        }
        api.answers = [listed(refused)]
        assert (
            "batch_1 did not pass; `xalen-batch show batch_1` names every line."
            in run(api, "runs", "sched_1").stdout
        )

    def test_one_that_cannot_begin_is_an_error(self, api: Api) -> None:
        api.answers = [
            ok(RUN | {"state": "failed", "batch_id": None, "message": "The file is gone."})
        ]
        result = run(api, "run", "sched_1", "--json")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "could not begin: The file is gone." in result.stderr

    def test_the_time_to_wait_counts_for_the_run_too(self, api: Api) -> None:
        api.answers = [ok(RUN | {"state": "waiting", "batch_id": None})]
        assert run(api, "run", "sched_1", "--wait", "--timeout", "0").exit_code == 5

    def test_a_backfill_names_its_times_and_shows_its_runs(self, api: Api) -> None:
        api.answers = [listed(RUN)]
        result = run(
            api, "backfill", "sched_1", "--from", "2026-11-01", "--to", "2026-11-08T06:00+01:00"
        )
        assert body(api, 0) == {"from": "2026-11-01T00:00:00", "to": "2026-11-08T06:00:00+01:00"}
        assert "Wed 2026-11-25 02:30 +01:00" in result.stdout

    def test_when_nothing_is_left_a_backfill_counts_what_failed_and_says_how_to_run_it_again(
        self, api: Api
    ) -> None:
        night = RUN | {"state": "failed", "scheduled_local": "2026-11-07T23:59:00+01:00"}
        others = [
            night | {"trigger": "manual"},
            night | {"scheduled_local": "2026-11-08T00:00:00+01:00"},
        ]
        api.answers = [
            listed(),
            listed(*others, night, night | {"scheduled_local": "2026-11-01T00:00:00+01:00"}),
        ]
        result = run(api, "backfill", "sched_1", "--from", "2026-11-01", "--to", "2026-11-08")
        assert (result.exit_code, result.stdout) == (0, "")
        assert (
            "every time between 2026-11-01T00:00:00 and 2026-11-08T00:00:00 has run already"
            in said(result)
        )
        assert "2 of these runs failed." in said(result)
        assert (
            "`xalen-batch schedules run sched_1 --for 2026-11-01T00:00:00+01:00` runs one of them"
            " again." in said(result)
        )

    def test_a_key_that_may_not_see_what_failed_is_told_how_to_run_it_again(self, api: Api) -> None:
        api.answers = [listed(), error(403)]
        result = run(
            api, "backfill", "sched_1", "--from", "2026-11-01", "--to", "2026-11-08T00:00+01:00"
        )
        assert result.exit_code == 0
        assert "failed" not in result.stderr
        assert "`xalen-batch schedules run sched_1 --for TIME` runs one of them again." in said(
            result
        )

    @pytest.mark.parametrize(
        ("start", "words"),
        [
            ("2026-11-09", "2026-11-09T00:00:00 is after --to"),
            ("2026-11-08", "is the same as --to"),
        ],
    )
    def test_a_backfill_from_after_its_end_is_a_usage_error(
        self, start: str, words: str, api: Api
    ) -> None:
        result = run(api, "backfill", "sched_1", "--from", start, "--to", "2026-11-08")
        assert (result.exit_code, api.requests) == (2, [])
        assert words in said(result)
