"""`--webhook`: the webhook of a new batch, whose secret is in a variable or a file."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.factories import chat_line, jsonl
from tests.unit.cli.fake_api import Api, serving
from xalen_batch.cli import client
from xalen_batch.cli.batch_webhook import SECRET
from xalen_batch.cli.main import app

URL = "https://example.com/hooks/xalen"
SIGNING = "whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c="


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(client, "PAUSES", ())
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.delenv(SECRET, raising=False)
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


def submitted(api: Api, path: Path, *options: object) -> tuple[Result, object]:
    api.answers = [ok({"id": "file_1"}), ok({"id": "batch_1"})]
    result = call(api, "submit", path, *options)
    assert result.exit_code == 0, result.stderr
    return result, json.loads(api.requests[-1][3]).get("webhook")


def test_a_batch_without_the_option_has_none(
    api: Api, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET, SIGNING)
    assert submitted(api, path)[1] is None


def test_the_secret_is_that_of_the_variable(
    api: Api, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET, SIGNING)
    result, webhook = submitted(api, path, "--webhook", URL)
    assert webhook == {"url": URL, "secret": SIGNING}
    assert SIGNING not in result.output


def test_a_file_goes_before_the_variable(
    api: Api, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET, "whsec_of-another-batch")
    file = tmp_path / "hook.secret"
    file.write_text(f"{SIGNING}\n", "utf-8")
    webhook = submitted(api, path, "--webhook", URL, "--webhook-secret-file", file)[1]
    assert webhook == {"url": URL, "secret": SIGNING}


def test_without_a_secret_the_user_is_told_that_nothing_is_signed(api: Api, path: Path) -> None:
    result, webhook = submitted(api, path, "--webhook", URL)
    assert webhook == {"url": URL}
    assert SECRET in result.stderr


def test_a_retry_has_it_too(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, SIGNING)
    api.answers = [ok({"id": "batch_2", "retry_codes": ["http_503"]})]
    assert call(api, "retry", "batch_1", "--webhook", URL).exit_code == 0
    assert json.loads(api.requests[0][3]) == {"webhook": {"url": URL, "secret": SIGNING}}


@pytest.mark.parametrize("command", ["submit", "run"])
@pytest.mark.parametrize(
    ("options", "variable", "said"),
    [
        (["--webhook", "example.com/hooks"], "", "give a whole URL"),
        (["--webhook", "ftp://example.com"], "", "give a whole URL"),
        (["--webhook", "https://"], "", "give a whole URL"),
        (["--webhook-secret-file", "x"], "", "also give the URL"),
        (["--webhook", URL, "--webhook-secret-file", "/nowhere/x"], "", "cannot be read"),
        (["--webhook", URL], "hunter2", "a secret is `whsec_`"),
    ],
)
def test_bad_options_are_refused_before_the_upload(
    api: Api,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    options: list[str],
    variable: str,
    said: str,
) -> None:
    monkeypatch.setenv(SECRET, variable)
    result = call(api, command, path, *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "hunter2" not in result.output
    assert api.requests == []
