"""Execution windows on the command line: options, requests, and the text while a batch waits."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer import BadParameter
from typer.testing import CliRunner, Result

from tests.factories import chat_line
from tests.unit.cli.fake_api import Api, serving
from tests.unit.cli.schedules.answers import body, file, ok, said
from xalen_batch.cli import client as client_module
from xalen_batch.cli import states, windows
from xalen_batch.cli.main import app
from xalen_batch.cli.windows import parse_window

ALL = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
OPENS, CLOSES = (
    int(datetime(2100, 12, day, hour, tzinfo=UTC).timestamp()) for day, hour in ((10, 21), (11, 5))
)
WINDOW = {"start": "22:00", "end": "06:00", "days": ALL, "timezone": "Europe/Berlin"}
CLOSED: dict[str, Any] = {**WINDOW, "state": "closed", "opens_at": OPENS, "closes_at": CLOSES}
BATCH: dict[str, Any] = {
    "id": "batch_1",
    "status": "in_progress",
    "created_at": OPENS - 3600,
    "expires_at": CLOSES,
    "input_file_id": "file-1",
    "request_counts": {"total": 2, "completed": 0, "failed": 0},
    "execution_window": CLOSED,
}
DONE = {**BATCH, "status": "completed", "request_counts": {"total": 2, "completed": 2, "failed": 0}}
DONE["execution_window"] = {**CLOSED, "opens_at": None, "closes_at": None}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(client_module, "PAUSES", ())
    monkeypatch.setattr(states, "FIRST_PAUSE", 0.0)
    with serving() as server:
        yield server


def run(api: Api, *arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(
        app,
        [*arguments, "--base-url", api.base_url, "--api-key", "xln_test_secret"],
        env=environment,
    )


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("22:00-06:00", None),
        (" 22:00 - 6:00 ", None),
        ("22:00\u201306:00 mon\u2013fri", ALL[:5]),
        ("22:00-06:00 mon,wed", ["mon", "wed"]),
        ("22:00-06:00, Mon Wed", ["mon", "wed"]),
        ("22:00-06:00 fri-mon,wed", ["fri", "sat", "sun", "mon", "wed"]),
        ("22:00-06:00 sat-sat", ["sat"]),
    ],
)
def test_hours_may_have_days_after_them(text: str, days: list[str] | None) -> None:
    times = {"start": "22:00", "end": "06:00"}
    assert parse_window(text, None) == times | ({"days": days} if days else {})
    assert parse_window(text, "Asia/Kathmandu")["timezone"] == "Asia/Kathmandu"


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "such as `22:00-06:00 mon-fri`"),
        ("22-06", "such as `22:00-06:00 mon-fri`"),
        ("22:00-06:00mon", "such as `22:00-06:00 mon-fri`"),
        ("mon-fri 22:00-06:00", "such as `22:00-06:00 mon-fri`"),
        ("22:00-24:00", "write the end of a day as `00:00`"),
        ("25:00-06:00", "'25:00' should be a time of day"),
        ("22:00-22:00", "should end at another time"),
        ("22:00-06:00 monday", "'monday' is no day"),
        ("22:00-06:00 mon-fry", "'mon-fry' is no day"),
        ("22:00-06:00 mon,,", "'' is no day"),
        ("٢٢:00-06:00", "such as"),
    ],
)
def test_anything_else_is_a_usage_error_with_a_remedy(text: str, remedy: str) -> None:
    with pytest.raises(BadParameter) as caught:
        parse_window(text, None)
    assert remedy in caught.value.message
    assert caught.value.param_hint == "--execution-window"


def test_a_zone_that_is_none_is_a_usage_error_of_its_option() -> None:
    with pytest.raises(BadParameter, match="Europe/Berlim") as caught:
        parse_window("22:00-06:00", "Europe/Berlim")
    assert caught.value.param_hint == "--timezone"


class TestSubmit:
    def sent(self, api: Api, folder: Path, *options: str, **environment: str) -> tuple[Any, str]:
        """The request for a batch, and the printed text."""
        api.answers = [ok({"id": "file-1"}), ok(BATCH)]
        result = run(api, "submit", file(folder, chat_line("a")), *options, **environment)
        assert (result.exit_code, result.stdout) == (0, "batch_1\n"), result.stderr
        return body(api, 1), said(result)

    def test_hours_are_sent_on_the_clock_that_was_named(self, api: Api, tmp_path: Path) -> None:
        request, told = self.sent(
            api,
            tmp_path,
            "--execution-window",
            "22:00-06:00 mon-fri",
            "--timezone",
            "Europe/Berlin",
            "--window",
            "3d",
        )
        assert request["execution_window"] == {**WINDOW, "days": ALL[:5]}
        assert "Time zone" not in told

    def test_whose_clock_it_is_otherwise_is_said(self, api: Api, tmp_path: Path) -> None:
        request, told = self.sent(
            api, tmp_path, "--execution-window", "22:00-06:00", TZ="Asia/Kathmandu"
        )
        assert request["execution_window"]["timezone"] == "Asia/Kathmandu"
        assert "Time zone: Asia/Kathmandu" in told

    def test_a_batch_without_hours_asks_for_none(self, api: Api, tmp_path: Path) -> None:
        assert "execution_window" not in self.sent(api, tmp_path)[0]

    @pytest.mark.parametrize("command", ["submit", "run"])
    @pytest.mark.parametrize("options", [["--execution-window", "late"], ["--timezone", "UTC"]])
    def test_what_cannot_be_is_refused_before_anything_is_sent(
        self, command: str, options: list[str], api: Api, tmp_path: Path
    ) -> None:
        result = run(api, command, file(tmp_path, chat_line("a")), *options)
        assert (result.exit_code, api.requests) == (2, [])
        assert "--execution-window" in said(result)


class TestWaiting:
    def test_watch_says_once_what_a_batch_waits_for(self, api: Api) -> None:
        opened = {**BATCH, "execution_window": {**CLOSED, "state": "open"}}
        next_night = {
            **BATCH,
            "execution_window": {**CLOSED, "opens_at": OPENS + 86_400},
            "expires_at": CLOSES + 86_400,
        }
        api.answers = [
            ok(each)
            for each in (
                {**BATCH, "status": "validating"},
                BATCH,
                BATCH,
                opened,
                next_night,
                next_night,
                DONE,
            )
        ]
        result = run(api, "watch", "batch_1")
        assert result.exit_code == 0
        assert (
            said(result).count("waits for its execution window, 22:00\u201306:00 Europe/Berlin.")
            == 2
        )
        assert "It opens Fri 2100-12-10 22:00 +01:00 (2100-12-10 21:00 UTC), in " in said(result)

    def test_watch_says_once_which_backend_is_down_and_when_it_goes_on(self, api: Api) -> None:
        runs = {**BATCH, "execution_window": None}
        down = {
            **runs,
            "waiting": {
                "reason": "backend_unavailable",
                "model": "m",
                "since": OPENS,
                "message": "No answer.",
            },
        }
        api.answers = [ok(each) for each in (runs, down, down, {**down, "waiting": None}, DONE)]
        told = said(run(api, "watch", "batch_1"))
        assert told.count("batch_1 waits. No answer. Since 2100-12-10 21:00 UTC.") == 1
        assert told.count("batch_1 goes on.") == 1

    def test_show_says_what_it_waits_for(self, api: Api) -> None:
        api.answers = [
            ok(
                {
                    **BATCH,
                    "waiting": {
                        "reason": "no_worker",
                        "model": None,
                        "since": None,
                        "message": "No worker is running.",
                    },
                }
            )
        ]
        (line,) = [
            line
            for line in run(api, "show", "batch_1").stdout.splitlines()
            if line.startswith("waiting")
        ]
        assert line.split(maxsplit=1)[1].strip() == "No worker is running."

    def test_watch_says_if_it_opens_too_late(self, api: Api) -> None:
        api.answers = [ok({**BATCH, "expires_at": OPENS - 60}), ok(DONE)]
        result = run(api, "watch", "batch_1")
        assert "It does not open again before the batch expires, 2100-12-10 20:59 UTC." in said(
            result
        )

    @pytest.mark.parametrize(
        ("window", "text"),
        [
            (CLOSED, "closed, opens Fri 2100-12-10 22:00 +01:00 (2100-12-10 21:00 UTC)"),
            (
                {**CLOSED, "state": "open"},
                "open, closes Sat 2100-12-11 06:00 +01:00 (2100-12-11 05:00 UTC)",
            ),
            (DONE["execution_window"], "closed"),
        ],
    )
    def test_show_has_the_window_with_its_state_and_when_that_changes(
        self, window: dict[str, Any], text: str, api: Api
    ) -> None:
        api.answers = [ok({**BATCH, "execution_window": window})]
        (line,) = [
            line
            for line in run(api, "show", "batch_1").stdout.splitlines()
            if line.startswith("execution_window")
        ]
        assert line.split(maxsplit=1)[1] == f"22:00\u201306:00 Europe/Berlin: {text}"

    def test_a_zone_that_this_machine_lacks_is_shown_all_the_same(self) -> None:
        in_utc = windows.shown({**CLOSED, "timezone": "UTC"})
        assert in_utc.endswith("UTC: closed, opens 2100-12-10 21:00 UTC")
        shown = windows.shown({**CLOSED, "timezone": "Mars/Olympus\x1b"})
        assert shown == "22:00\u201306:00 Mars/Olympus\\x1b: closed, opens 2100-12-10 21:00 UTC"
