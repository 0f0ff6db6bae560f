"""Commands that make and change schedules: their requests, and errors before any request."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from tests.factories import chat_line, jsonl
from tests.unit.cli.fake_api import Api, serving
from tests.unit.cli.schedules.answers import (
    PREVIEW,
    RUN,
    SCHEDULE,
    SOURCE,
    body,
    error,
    file,
    listed,
    ok,
    run,
    said,
)
from xalen_batch.cli import client as client_module
from xalen_batch.cli.main import app
from xalen_batch.cli.schedules import options
from xalen_batch.schedules import definition


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(client_module, "PAUSES", ())
    with serving() as server:
        yield server


class TestCreate:
    def test_a_template_is_uploaded_as_it_is_and_its_endpoint_is_its_first_lines(
        self, api: Api, tmp_path: Path
    ) -> None:
        path = file(tmp_path, chat_line("summary-{{scheduled_date-1d}}"))
        api.answers = [ok({"id": "file-1"}), ok(SCHEDULE), ok(PREVIEW)]
        result = run(
            api,
            "create",
            "tickets",
            "--cron",
            "30 2 * * *",
            "--timezone",
            "Europe/Berlin",
            "--template",
            path,
        )
        assert (result.exit_code, result.stdout) == (0, "sched_1\n")
        assert b"summary-{{scheduled_date-1d}}" in api.requests[0][3]
        assert body(api, 1) == {
            "name": "tickets",
            "cron": "30 2 * * *",
            "timezone": "Europe/Berlin",
            "template_file_id": "file-1",
            "endpoint": "/v1/chat/completions",
        }
        assert "At 02:30 every day (Europe/Berlin).\n" in result.stderr
        assert (
            "Next: Fri 2100-12-10 02:30 +02:00  2100-12-10 00:30 UTC\n      Sat 2100-12-11 02:30"
            " +01:00" in result.stderr
        )
        assert "2 min 5 s later, every time" in result.stderr

    def test_every_option_is_sent_under_its_name(self, api: Api) -> None:
        window = {
            "start": "22:00",
            "end": "06:00",
            "days": ["mon", "tue"],
            "timezone": "Asia/Kathmandu",
        }
        api.answers = [
            ok(
                SCHEDULE
                | {
                    "source_location": "/srv/drops/{{scheduled_date}}",
                    "execution_window": window,
                }
            ),
            ok(PREVIEW),
        ]
        options = (
            "--folder /srv/drops/{{scheduled_date}} --pattern *.json --ready-marker DONE --on-empty"
            " fail --repeat --endpoint /v1/rerank --window 7d --metadata team=search --starts"
            " 2026-12-01 --ends 2027-01-01T06:00+01:00 --jitter 300 --overlap buffer_one --misfire"
            " all --misfire-limit 5 --catch-up 2h --pause-on-failure 3 --timezone Asia/Kathmandu"
            " --execution-window"
        )
        result = run(
            api,
            "create",
            "drop",
            "--cron",
            "@daily",
            *options.split(),
            "22:00-06:00 mon-fri",
            "--json",
        )
        assert (result.exit_code, json.loads(result.stdout)["id"]) == (0, "sched_1")
        assert "It takes its files from /srv/drops/{{scheduled_date}}." in result.stderr
        assert (
            "start lines only in their execution window, 22:00–06:00 Asia/Kathmandu, mon–tue."
            in said(result)
        )
        assert body(api, 0) == {
            "name": "drop",
            "cron": "@daily",
            "timezone": "Asia/Kathmandu",
            "source": {
                "prefix": None,
                "folder": "/srv/drops/{{scheduled_date}}",
                "pattern": "*.json",
                "ready_marker": "DONE",
                "on_empty": "fail",
                "repeat": True,
            },
            "endpoint": "/v1/rerank",
            "completion_window": "7d",
            "metadata": {"team": "search"},
            "starts_at": "2026-12-01T00:00:00",
            "ends_at": "2027-01-01T06:00:00+01:00",
            "jitter": 300,
            "overlap": "buffer_one",
            "misfire": "all",
            "misfire_limit": 5,
            "catch_up_window": "2h",
            "pause_on_failure": 3,
            "execution_window": {
                "start": "22:00",
                "end": "06:00",
                "days": ["mon", "tue", "wed", "thu", "fri"],
                "timezone": "Asia/Kathmandu",
            },
        }

    def test_a_file_with_errors_is_refused_before_anything_is_sent(
        self, api: Api, tmp_path: Path
    ) -> None:
        path = file(tmp_path, chat_line("a"), chat_line("a"))
        result = run(api, "create", "tickets", "--cron", "@daily", "--file", path)
        assert (result.exit_code, result.stdout, api.requests) == (1, "", [])
        assert "in.jsonl:2: duplicate_custom_id" in result.stderr

    def test_a_file_that_was_uploaded_for_nothing_is_removed_again(
        self, api: Api, tmp_path: Path
    ) -> None:
        api.answers = [ok({"id": "file-1"}), error(400, "Line 1 of file-1 is wrong."), ok({})]
        result = run(
            api, "create", "tickets", "--cron", "@daily", "--file", file(tmp_path, chat_line("a"))
        )
        assert (result.exit_code, result.stdout) == (1, "")
        assert api.requests[2][:2] == ("DELETE", "/v1/files/file-1")
        assert "Error: Line 1 of in.jsonl is wrong." in result.stderr

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("", "in.jsonl is empty."),
            (" \n\n", "in.jsonl is empty."),
            (
                '\n{"custom_id": "a", "n": {{scheduled_date}}}\n',
                "Line 2 of in.jsonl is no JSON: Expecting property name",
            ),
            ('\n{"custom_id": "a"}\n', "Line 2 of in.jsonl has no url."),
            ("[]", "Line 1 of in.jsonl has no url."),
        ],
    )
    def test_a_template_whose_first_line_is_no_request_is_refused_with_the_reason(
        self, content: str, words: str, api: Api, tmp_path: Path
    ) -> None:
        path = tmp_path / "in.jsonl"
        path.write_text(content)
        result = run(api, "create", "tickets", "--cron", "@daily", "--template", str(path))
        assert (result.exit_code, result.stdout, api.requests) == (1, "", [])
        assert words in said(result)
        assert ("A placeholder stands inside a string" in said(result)) == ("{{" in content)

    @pytest.mark.parametrize("option", ["--file-id", "--template-id"])
    def test_an_empty_file_on_the_server_is_called_empty(self, option: str, api: Api) -> None:
        api.answers = [(200, {}, b"")]
        result = run(api, "create", "tickets", "--cron", "@daily", option, "file-7")
        assert "Error: file-7 is empty." in said(result)

    def test_what_the_api_says_of_its_fields_names_the_options_and_leaves_values_as_they_are(
        self, api: Api
    ) -> None:
        api.answers = [
            error(
                400,
                "cron: 'ends_at' has no fire left before ends_at. Send `misfire: all`; overlap is"
                " `overlap`.",
            )
        ]
        result = run(
            api, "create", "tickets", "--cron", "@daily", "--inbox", "--endpoint", "/v1/rerank"
        )
        assert (
            "--cron: 'ends_at' has no fire left before --ends. Send `misfire: all`; overlap is"
            " `--overlap`." in said(result)
        )

    @pytest.mark.parametrize(
        "arguments",
        [
            ["create", "tickets", "--cron", "30", "2", "*", "a.txt"],
            ["preview", "--cron", "30", "2", "*"],
        ],
    )
    def test_an_expression_without_quotes_is_told_of_them(
        self, arguments: list[str], api: Api
    ) -> None:
        result = run(api, *arguments)
        assert (result.exit_code, api.requests) == (2, [])
        assert 'Quote the expression, or the shell takes it apart: --cron "30 2 * * *".' in said(
            result
        )

    @pytest.mark.parametrize(
        "wrong", [["--cron", "61 * * * *"], ["--cron", "@daily", "--starts", "soon"]]
    )
    def test_the_zone_that_is_taken_is_told_when_nothing_is_wrong(
        self, wrong: list[str], api: Api
    ) -> None:
        for command in (["create", "t", "--inbox", "--endpoint", "/v1/rerank"], ["preview"]):
            assert "Time zone" not in run(api, *command, *wrong).stderr
        api.answers = [ok(PREVIEW)]
        assert (
            "Time zone: Asia/Kathmandu"
            in run(api, "preview", "--cron", "@daily", env={"TZ": "Asia/Kathmandu"}).stderr
        )

    def test_the_endpoint_of_a_file_on_the_server_is_its_first_lines(self, api: Api) -> None:
        api.answers = [(200, {}, jsonl([chat_line("a", model="m")])), ok(SCHEDULE), ok(PREVIEW)]
        assert (
            run(api, "create", "tickets", "--cron", "@daily", "--file-id", "file-7").exit_code == 0
        )
        assert api.requests[0][1] == "/v1/files/file-7/content"
        assert (body(api, 1)["input_file_id"], body(api, 1)["endpoint"]) == (
            "file-7",
            "/v1/chat/completions",
        )

    def test_a_key_that_may_not_read_still_makes_it(self, api: Api) -> None:
        api.answers = [ok(SCHEDULE), error(403)]
        result = run(
            api, "create", "tickets", "--cron", "@daily", "--inbox", "--endpoint", "/v1/rerank"
        )
        assert (result.exit_code, result.stdout) == (0, "sched_1\n")
        assert "Next fires: not shown. Told so." in result.stderr

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--cron", "@daily"], "what is it to run?"),
            (["--cron", "@daily", "--inbox", "--prefix", "a/"], "--prefix and --inbox are given"),
            (["--cron", "@daily", "--inbox"], "--inbox needs it"),
            (["--cron", "61 * * * *", "--file-id", "f"], "'61' is no minute"),
            (["--cron", "@daily", "--timezone", "Berlin", "--file-id", "f"], "`Europe/Berlin`"),
            (
                ["--cron", "@daily", "--file-id", "f", "--pattern", "*"],
                "it belongs to --prefix or --folder",
            ),
            (
                ["--cron", "@daily", "--file-id", "f", "--on-empty", "fail"],
                "it belongs to --prefix, --folder or --inbox",
            ),
            (
                ["--cron", "@daily", "--file-id", "f", "--starts", "tomorrow"],
                "'tomorrow' is not a time",
            ),
            (["--cron", "@daily", "--file-id", "f", "--overlap", "never"], "never"),
            (
                ["--cron", "@daily", "--file-id", "f", "--jitter", "901"],
                "less than or equal to 900",
            ),
        ],
    )
    def test_what_cannot_be_is_a_usage_error_and_nothing_is_sent(
        self, options: list[str], words: str, api: Api
    ) -> None:
        result = run(api, "create", "tickets", *options)
        assert (result.exit_code, result.stdout, api.requests) == (2, "", [])
        assert words in said(result)


class TestEdit:
    def test_only_what_is_given_is_sent_and_null_clears(self, api: Api) -> None:
        api.answers = [ok(SCHEDULE), ok(SCHEDULE), ok(PREVIEW)]
        options = [
            "--name",
            "new",
            "--cron",
            "0 3 * * *",
            "--clear",
            "ends",
            "--clear",
            "execution-window",
        ]
        result = run(api, "edit", "sched_1", *options)
        assert (result.exit_code, result.stdout) == (0, "")
        assert api.requests[1][:2] == ("PATCH", "/v1/schedules/sched_1")
        assert body(api, 1) == {
            "name": "new",
            "cron": "0 3 * * *",
            "ends_at": None,
            "execution_window": None,
        }

    @pytest.mark.parametrize(
        ("options", "source"),
        [
            (["--pattern", "*.gz"], SOURCE | {"pattern": "*.gz"}),
            (["--folder", "/srv/new"], SOURCE | {"prefix": None, "folder": "/srv/new"}),
            (["--clear", "ready-marker", "--no-repeat"], SOURCE | {"ready_marker": None}),
        ],
    )
    def test_the_rest_of_a_source_stays(
        self, options: list[str], source: dict[str, Any], api: Api
    ) -> None:
        api.answers = [ok(SCHEDULE | {"source": SOURCE}), ok(SCHEDULE), ok(PREVIEW)]
        assert run(api, "edit", "sched_1", *options).exit_code == 0
        assert body(api, 1) == {"source": source}

    def test_an_inbox_is_told_what_to_do_when_it_is_empty(self, api: Api) -> None:
        api.answers = [
            ok(SCHEDULE | {"inbox": {"on_empty": "skip", "pending": 7}}),
            ok(SCHEDULE),
            ok(PREVIEW),
        ]
        assert run(api, "edit", "sched_1", "--on-empty", "fail").exit_code == 0
        assert body(api, 1) == {"inbox": {"on_empty": "fail"}}

    def test_another_file_brings_its_endpoint_and_is_removed_if_refused(
        self, api: Api, tmp_path: Path
    ) -> None:
        api.answers = [ok(SCHEDULE), ok({"id": "file-2"}), error(404), ok({})]
        result = run(api, "edit", "sched_1", "--file", file(tmp_path, chat_line("a")))
        assert (result.exit_code, body(api, 2)) == (
            1,
            {"input_file_id": "file-2", "endpoint": "/v1/chat/completions"},
        )
        assert api.requests[3][:2] == ("DELETE", "/v1/files/file-2")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ([], "nothing is to be changed"),
            (["--ends", "2027-01-01", "--clear", "ends"], "ends is both set and cleared"),
            (["--cron", "0 0 30 2 *"], "never fires"),
            (["--clear", "ready-marker"], "it belongs to --prefix or --folder"),
            (["--clear", "cron"], "cron"),
        ],
    )
    def test_what_cannot_be_changes_nothing(self, options: list[str], words: str, api: Api) -> None:
        api.answers = [ok(SCHEDULE)]
        result = run(api, "edit", "sched_1", *options)
        assert (result.exit_code, [method for method, *_ in api.requests if method != "GET"]) == (
            2,
            [],
        )
        assert words in said(result)


@pytest.mark.parametrize(
    "command", ["show", "edit", "runs", "run", "pause", "resume", "delete", "preview"]
)
def test_what_is_no_id_of_a_schedule_is_not_asked_for(command: str, api: Api) -> None:
    result = run(api, command, "batch_1")
    assert (result.exit_code, api.requests) == (2, [])
    assert "is not the id of a schedule, `sched_…`. `xalen-batch schedules list` shows" in said(
        result
    )


def test_a_pause_keeps_its_note_and_a_deletion_names_the_option_that_discards(api: Api) -> None:
    api.answers = [
        ok(SCHEDULE | {"status": "paused"}),
        error(400, "Delete it with `discard_requests=true`."),
        ok({"discarded_requests": 2}),
    ]
    assert "`xalen-batch schedules resume sched_1`" in said(
        run(api, "pause", "sched_1", "--note", "why")
    )
    assert body(api, 0) == {"note": "why"}
    assert "Delete it with `--discard-requests`." in run(api, "delete", "sched_1").stderr
    assert "2 requests with it" in run(api, "delete", "sched_1", "--discard-requests").stderr
    assert api.requests[2][:2] == ("DELETE", "/v1/schedules/sched_1?discard_requests=true")


def test_what_has_ended_is_told_how_to_fire_again(api: Api) -> None:
    ended, none = (
        SCHEDULE | {"status": "ended", "ends_at": 1, "next_fire_at": None, "next_fire_local": None},
        PREVIEW | {"fires": []},
    )
    api.answers = [ok(ended), ok(ended | {"status": "paused"}), ok(none), ok(none)]
    for command in ("resume", "pause"):
        result = run(api, command, "sched_1")
        assert (
            "It has ended: no fire is left. `xalen-batch schedules edit sched_1 --clear ends` (or"
            " --ends TIME)" in said(result)
        )
        assert "schedules resume" not in said(result)
    assert "There is no fire to show: none is left before its end." in said(
        run(api, "preview", "sched_1")
    )


def test_one_with_an_end_that_is_still_to_come_is_resumed_as_any_other(api: Api) -> None:
    api.answers = [ok(SCHEDULE | {"status": "paused", "ends_at": 4132171801}), ok(PREVIEW)]
    assert "`xalen-batch schedules resume sched_1` lets it fire again." in said(
        run(api, "pause", "sched_1")
    )


def test_batches_of_a_schedule_are_listed(api: Api) -> None:
    api.answers = [listed()]
    options = ["--base-url", api.base_url, "--api-key", "xln_test_secret"]
    result = CliRunner().invoke(app, ["list", "--schedule", "sched_1", *options])
    assert api.requests[0][1] == "/v1/batches?limit=20&schedule_id=sched_1"
    assert "No batch of sched_1 yet." in result.stderr


def test_the_policies_are_those_of_the_server() -> None:
    for name in ("Overlap", "Misfire", "OnEmpty"):
        assert get_args(getattr(options, name)) == get_args(getattr(definition, name))


def test_a_key_that_may_not_read_is_told_what_it_may_see(api: Api) -> None:
    hidden = dict.fromkeys(SCHEDULE) | {"id": "sched_1", "object": "schedule", "status": "paused"}
    waits = dict.fromkeys(RUN) | {
        "id": "run_1",
        "object": "schedule.run",
        "schedule_id": "sched_1",
        "state": "waiting",
    }
    api.answers = [ok(hidden), ok(hidden | {"status": "active"}), ok(waits), listed(waits)]
    assert said(run(api, "pause", "sched_1")).startswith("sched_1 is paused;")
    assert said(run(api, "resume", "sched_1")) == "sched_1 is active."
    assert said(run(api, "run", "sched_1")).startswith("run_1 is waiting.")
    result = run(api, "backfill", "sched_1", "--from", "2026-11-01", "--to", "2026-11-08")
    assert (result.exit_code, result.stdout) == (0, "")
    assert said(result).startswith("1 run.")
