"""However a command ends, it ends in one readable line and the right exit code."""

import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs
from typer.testing import CliRunner

from tests.factories import chat_line, jsonl
from tests.unit.cli.fake_api import serving
from xalen_batch import catalog
from xalen_batch.cli import entry, server
from xalen_batch.cli.failures import ApiError, Failed, describe
from xalen_batch.cli.main import app
from xalen_batch.config import Settings
from xalen_batch.errors import ConfigError, InvalidRequest


def _version_that(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have the command `version` do something else."""
    monkeypatch.setattr(server, "print_json", lambda _: act())


def _raises(error: BaseException) -> Callable[[], object]:
    def act() -> object:
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (Failed("Said so."), "Error: Said so."),
        (ConfigError("XALEN_CATALOG is wrong."), "Error: XALEN_CATALOG is wrong."),
        (InvalidRequest("Not this."), "Error: Not this."),
        (
            FileNotFoundError(2, "No such file or directory", "in.jsonl"),
            "Error: in.jsonl: No such file or directory",
        ),
        (OSError(28, "No space left on device"), "Error: No space left on device"),
        (
            ValueError("first\nsecond"),
            "Error: Unexpected ValueError: first (XALEN_DEBUG=1 shows where)",
        ),
        (Failed("red \x1b[31m text"), "Error: red \\x1b[31m text"),
    ],
)
def test_an_error_is_one_line_on_stderr_and_exit_1(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _version_that(monkeypatch, _raises(error))
    result = CliRunner().invoke(app, ["version", "--json"])
    assert (result.exit_code, result.stdout, result.stderr.strip()) == (1, "", line)


def test_debugging_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XALEN_DEBUG", "1")
    _version_that(monkeypatch, _raises(ValueError("inside")))
    assert isinstance(CliRunner().invoke(app, ["version", "--json"]).exception, ValueError)


def test_ctrl_c_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    _version_that(monkeypatch, _raises(KeyboardInterrupt()))
    assert CliRunner().invoke(app, ["version", "--json"]).exit_code == 130


@pytest.mark.parametrize(("status", "code"), [(401, 4), (403, 4), (404, 1), (500, 1)])
def test_auth_has_an_exit_code_of_its_own(status: int, code: int) -> None:
    assert ApiError(status, "no").exit_code == code


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XALEN_PORT", "http")
    with pytest.raises(ValueError, match="port") as wrong:
        Settings()
    assert describe(wrong.value).startswith("A setting is not valid. XALEN_PORT: ")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "PORT",
            "http",
            (
                "XALEN_PORT: 'http' is not a whole number. Allowed: at least 0 and at most 65535."
                " Without it: 8080."
            ),
        ),
        (
            "PORT",
            "99999",
            (
                "XALEN_PORT: '99999' must be at most 65535. Allowed: at least 0 and at most 65535."
                " Without it: 8080."
            ),
        ),
        (
            "LEASE",
            "inf",
            "XALEN_LEASE: 'inf' is not a finite number. Allowed: more than 1. Without it: 60.0.",
        ),
        (
            "LOG_LEVEL",
            "loud",
            (
                "XALEN_LOG_LEVEL: 'loud' is not one of 'debug', 'info', 'warning' or 'error'."
                " Without it: info."
            ),
        ),
        (
            "BATCH_DISCOUNT",
            "half",
            (
                "XALEN_BATCH_DISCOUNT: 'half' is not a number. Allowed: at least 0 and at most 1."
                " Without it: 0.5."
            ),
        ),
        ("STORAGE_URL", "s3://b", "XALEN_STORAGE_URL: 's3://b': must be a local folder"),
        ("DATABASE_URL", "mysql://u:secret@h", "XALEN_DATABASE_URL: must be a PostgreSQL address"),
        ("TRUSTED_PROXIES", "nginx", "nginx is neither an address nor a network"),
    ],
)
def test_a_wrong_setting_is_a_sentence_with_its_value_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(f"XALEN_{name}", value)
    with pytest.raises(ValidationError) as wrong:
        Settings()
    said = describe(wrong.value)
    assert words in said
    assert "secret" not in said
    assert not re.search(r"Input should|Value error|pydantic|type=", said)


NUMBERS = [
    name for name, field in Settings.model_fields.items() if field.annotation in (int, float)
]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_among_the_settings_is_refused_in_our_words(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"XALEN_{name.upper()}", "-7")
    with pytest.raises(ValidationError) as wrong:
        Settings()
    assert re.match(
        rf"A setting is not valid\. XALEN_{name.upper()}: '-7' must be (more than|at least) ",
        describe(wrong.value),
    )


def test_a_misspelt_setting_is_found_with_the_name_that_was_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XALEN_WORKER_SLOT", "8")
    monkeypatch.setenv("xalen_dabase_url", "x")
    monkeypatch.setenv("XALEN_QQQQQQ", "x")
    monkeypatch.setenv("XALEN_BASE_URL", "http://h")
    found = {
        name: meant
        for name, meant in catalog.unknown_settings().items()
        if not name.startswith("XALEN_TEST_")
    }
    assert found == {
        "XALEN_WORKER_SLOT": "XALEN_WORKER_SLOTS",
        "xalen_dabase_url": "XALEN_DATABASE_URL",
        "XALEN_QQQQQQ": None,
    }
    with capture_logs() as events:
        catalog.warn_of_unknown_settings()
    told = {
        event["name"]: event["meant"] for event in events if event["event"] == "setting.unknown"
    }
    assert told["XALEN_WORKER_SLOT"] == "XALEN_WORKER_SLOTS"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            {"context_window": "big"},
            "models.mistral-small-3-1.context_window: 'big' is not a whole number",
        ),
        ({"context_window": 0}, "models.mistral-small-3-1.context_window: 0 must be more than 0"),
        (
            {"backend": {"base_urll": "http://h"}},
            "backend.base_urll: there is no such field. Did you mean base_url?",
        ),
        (
            {"contxt_window": 1},
            "contxt_window: there is no such field. Did you mean context_window?",
        ),
        (
            {"backend": {"rerank_api": "x"}},
            "backend.rerank_api: 'x' is not one of 'jina', 'cohere' or 'tei'",
        ),
        ({"price": {"input": "-1"}}, "price.input: '-1' must be at least 0"),
    ],
)
def test_an_error_of_the_catalog_is_a_sentence(table: dict[str, Any], words: str) -> None:
    built_in = tomllib.loads(
        resources.files("xalen_batch").joinpath("catalog.toml").read_text("utf-8")
    )
    with pytest.raises(ConfigError) as wrong:
        catalog.parse(built_in, {"models": {"mistral-small-3-1": table}})
    assert words in str(wrong.value)
    with pytest.raises(ConfigError, match=r"models\.new\.name: is missing"):
        catalog.parse({"models": {"new": {}}})


def test_a_wrong_setting_and_a_wrong_option_are_told_without_the_words_of_a_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XALEN_DATABASE_URL", "mysql://h/d")
    with pytest.raises(ValueError, match="Value error") as wrong:
        Settings()
    assert describe(wrong.value).startswith("A setting is not valid. XALEN_DATABASE_URL: must be")
    refused = CliRunner().invoke(app, ["keys", "create", "--account", "a", "--mode", "prod"])
    assert refused.exit_code == 2
    assert "'prod' is not one of 'test', 'live'" in refused.stderr
    assert "Value error" not in refused.stderr


def test_a_reader_that_leaves_early_is_not_an_error_message(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("not json\n" * 50_000, "utf-8")
    command = f"{sys.executable} -m xalen_batch.cli.main validate {path} --all --json | head -c 10"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert len(result.stdout) == 10
    assert result.stderr == ""


def _interrupted(
    step: str, arguments: list[str], folder: Path, base_url: str = "http://127.0.0.1:9/v1"
) -> subprocess.CompletedProcess[str]:
    """A command that gets Ctrl-C in a step of the client."""
    code = (
        "import os, signal, sys\n"
        "from xalen_batch.cli import client, main\n"
        f"client.ApiClient.{step} = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)\n"
        f"main.app({[*arguments, '--base-url', base_url, '--api-key', 'xln_test_x']!r})\n"
    )
    environment = {**os.environ, "XALEN_DATA_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_ctrl_c_while_waiting_exits_130_and_tells_how_to_go_on(tmp_path: Path) -> None:
    result = _interrupted("get", ["watch", "batch_1"], tmp_path)
    assert result.returncode == 130
    assert "The batch goes on; `xalen-batch watch batch_1` resumes." in result.stderr


@pytest.mark.parametrize("command", ["run", "submit"])
@pytest.mark.parametrize("step", ["__init__", "upload"])
def test_ctrl_c_before_the_batch_says_that_nothing_runs(
    command: str, step: str, tmp_path: Path
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl([chat_line("a")]))
    with serving() as api:
        result = _interrupted(step, [command, str(path)], tmp_path, api.base_url)
    assert (result.returncode, result.stderr) == (
        130,
        "Stopped before the batch was submitted; nothing runs.\n",
    )


def test_ctrl_c_while_the_commands_load_is_a_word_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("typer.main.get_command", lambda _: _raises(KeyboardInterrupt())())
    with pytest.raises(SystemExit) as stopped:
        entry.main()
    assert (stopped.value.code, capsys.readouterr().err) == (
        130,
        "Stopped before the command began.\n",
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "--status", "foo"], "'completed'"),
        (["list", "--created-after", "soon"], "Write it as 2026-11-01"),
        (["keys", "create", "--account", "a", "--expires", "2020-01-01"], "a moment to come"),
        (
            ["keys", "create", "--account", "a", "--expires", "soon"],
            "Write it as 2027-12-31T18:00:00",
        ),
    ],
)
def test_a_value_that_cannot_be_is_a_usage_error(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())
