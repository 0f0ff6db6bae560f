"""`submit`: options are checked before the upload, and an upload whose batch is refused does not
stay behind.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.factories import chat_line, jsonl
from tests.unit.cli.fake_api import Api, serving
from xalen_batch.cli import client
from xalen_batch.cli.main import app

BATCH: dict[str, Any] = {"id": "batch_1", "object": "batch", "status": "validating"}
LONG = "x" * 513


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(client, "PAUSES", ())
    monkeypatch.setenv("COLUMNS", "400")
    with serving() as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl([chat_line("a")]))
    return path


def call(api: Api, *arguments: object) -> Result:
    return CliRunner().invoke(
        app, [*map(str, arguments), "--base-url", api.base_url, "--api-key", "xln_test_secret"]
    )


def ok(value: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps(value).encode()


def error(status: int, message: str = "Told so.") -> tuple[int, dict[str, str], bytes]:
    return (
        status,
        {"retry-after": "3600"},
        json.dumps({"error": {"message": message, "param": None, "code": None}}).encode(),
    )


def sent(api: Api) -> list[tuple[str, str]]:
    return [(method, target) for method, target, *_ in api.requests]


WRONG: list[tuple[list[str], str]] = [
    (["--window", "99d"], "'99d' is not a completion window"),
    (["--window", "30m"], "whole hours or days"),
    (["--window", ""], "'' is not a completion window"),
    (
        ["--endpoint", "/v1/chat"],
        "is not an endpoint. Give one of /v1/chat/completions, /v1/responses",
    ),
    (["--metadata", "a"], "'a' is not KEY=VALUE"),
    (["--metadata", "a=1", "--metadata", "a=2"], "'a' is given twice"),
    (["--metadata", f"a={LONG}"], "the value of 'a' has 513 characters; at most 512"),
    (["--metadata", f"{LONG}=1"], "has 513 characters; at most 64"),
    (["--metadata", "a=\udc80"], "is not text in UTF-8"),
    (
        [word for number in range(17) for word in ("--metadata", f"k{number}=1")],
        "17 keys are given; a batch keeps at most 16",
    ),
    (["--execution-window", "25:00-26:00"], "should be a time of day"),
    (["--execution-window", "22:00-06:00", "--timezone", "Europe/Berln"], "Europe/Berlin"),
    (["--timezone", "Europe/Berlin"], "give --execution-window too"),
]


@pytest.mark.parametrize("command", ["submit", "run"])
@pytest.mark.parametrize(("options", "words"), WRONG, ids=[words for _, words in WRONG])
def test_a_wrong_option_is_a_usage_error_before_anything_is_sent(
    command: str, options: list[str], words: str, api: Api, path: Path
) -> None:
    result = call(api, command, path, *options)
    assert (result.exit_code, result.stdout, api.requests) == (2, "", [])
    assert words in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--window", "99d"], "'99d' is not a completion window"),
        (["--catch-up", "31d"], "'31d' is not a catch-up window"),
        (["--endpoint", "auto"], "'auto' is not an endpoint"),
        (["--metadata", f"a={LONG}"], "at most 512"),
    ],
    ids=lambda value: value[0],
)
def test_so_is_one_of_a_schedule(options: list[str], words: str, api: Api, path: Path) -> None:
    for command in (["create", "nightly", "--cron", "@daily", "--file", path], ["edit", "sched_1"]):
        api.answers = [ok({"timezone": "UTC", "cron": "@daily"})] if command[0] == "edit" else []
        result = call(api, "schedules", *command, *options)
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in " ".join(result.stderr.split())
        assert all(method == "GET" for method, _ in sent(api))


def test_an_execution_window_that_opens_too_late_is_refused_with_the_arithmetic(
    api: Api, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xalen_batch.cli import windows

    class Noon(windows.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 11, 28, 12, tzinfo=tz)

    monkeypatch.setattr(windows, "datetime", Noon)
    options = ["--execution-window", "22:00-06:00", "--timezone", "UTC", "--window"]
    result = call(api, "submit", path, *options, "9h")
    assert (result.exit_code, api.requests) == (2, [])
    assert "next opens at sat 2026-11-28 22:00+00:00, 10 h after the start" in " ".join(
        result.stderr.split()
    )
    api.answers = [ok({"id": "file-1"}), ok(BATCH)]
    assert call(api, "submit", path, *options, "11h").exit_code == 0


@pytest.mark.parametrize("status", [400, 403, 404, 429])
def test_the_upload_of_a_refused_batch_is_deleted_again(status: int, api: Api, path: Path) -> None:
    api.answers = [
        ok({"id": "file-1"}),
        error(status, "Your account has 3 open batches, of 3."),
        ok({"id": "file-1", "deleted": True}),
    ]
    result = call(api, "submit", path)
    assert (result.exit_code, result.stdout) == (4 if status == 403 else 1, "")
    assert sent(api)[2:] == [("DELETE", "/v1/files/file-1")]
    assert "Your account has 3 open batches, of 3." in result.stderr
    assert "The upload was deleted again." in result.stderr


def test_an_upload_that_cannot_be_deleted_is_named_with_the_command_that_deletes_it(
    api: Api, path: Path
) -> None:
    api.answers = [ok({"id": "file-1"}), error(400), error(403)]
    result = call(api, "submit", path)
    assert result.exit_code == 1
    assert "Told so." in result.stderr
    assert "`xalen-batch files delete file-1` deletes it" in result.stderr


def test_a_conflict_that_stays_one_is_a_refusal(api: Api, path: Path) -> None:
    status, headers, body = error(409)
    api.answers = [
        ok({"id": "file-1"}),
        (status, headers | {"x-should-retry": "false"}, body),
        ok({}),
    ]
    assert call(api, "submit", path).exit_code == 1
    assert sent(api)[2:] == [("DELETE", "/v1/files/file-1")]


@pytest.mark.parametrize("status", [409, 500, 503])
def test_the_upload_stays_where_the_batch_may_have_been_made(
    status: int, api: Api, path: Path
) -> None:
    api.answers = [ok({"id": "file-1"}), error(status)]
    result = call(api, "submit", path)
    assert (result.exit_code, sent(api)[2:]) == (1, [])
    assert "The batch may have been made: `xalen-batch list` tells." in result.stderr
    assert "`xalen-batch files delete file-1`" in result.stderr


def test_the_hint_names_the_file_as_the_shell_takes_it_where_errors_were_left_out(
    api: Api, tmp_path: Path
) -> None:
    path = tmp_path / "my 'night'.jsonl"
    path.write_bytes(jsonl([chat_line("a")] * 23))
    result = call(api, "submit", path)
    assert (result.exit_code, api.requests) == (1, [])
    assert (
        f"""`xalen-batch validate --all '{tmp_path}/my '"'"'night'"'"'.jsonl'` shows every one."""
        in result.stderr
    )


def test_there_is_no_hint_where_every_error_was_shown(api: Api, path: Path) -> None:
    path.write_bytes(jsonl([chat_line("a"), chat_line("a")]))
    result = call(api, "submit", path)
    assert (
        "in.jsonl has 1 error, so nothing was submitted. --on-invalid skip runs the other lines.\n"
        in result.stderr
    )
