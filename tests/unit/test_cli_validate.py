"""`validate` with no server: every error with its line, costs, exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.factories import CHAT_MODEL, RERANK_MODEL, chat_line, jsonl, rerank_line
from xalen_batch.cli.main import app


def _validate(file: Path | str, *options: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["validate", str(file), *options], input=stdin)


def _file(folder: Path, lines: list[dict[str, Any]]) -> Path:
    path = folder / "in.jsonl"
    path.write_bytes(jsonl(lines))
    return path


def test_a_good_file_exits_0_with_its_cost_per_model(tmp_path: Path) -> None:
    lines = [chat_line("a"), chat_line("b", json.dumps({"query": "q", "documents": ["d"]}), model=RERANK_MODEL)]
    result = _validate(_file(tmp_path, lines))
    assert result.exit_code == 0
    assert CHAT_MODEL in result.stdout
    assert RERANK_MODEL in result.stdout
    assert "is valid for /v1/chat/completions" in result.stderr


def test_the_endpoint_is_taken_from_the_first_line(tmp_path: Path) -> None:
    result = _validate(_file(tmp_path, [rerank_line("a")]), "--json")
    assert (result.exit_code, json.loads(result.stdout)["endpoint"]) == (0, "/v1/rerank")


def test_costs_are_exact_strings_at_batch_price(tmp_path: Path) -> None:
    found = json.loads(_validate(_file(tmp_path, [chat_line("a", max_tokens=1)]), "--json").stdout)
    assert isinstance(found["expected_cost"], str)
    assert found["discount_rate"] == "0.5"
    assert found["currency"] == "USD"


def test_every_error_is_shown_with_its_line_and_exits_1(tmp_path: Path) -> None:
    path = _file(tmp_path, [chat_line("a"), chat_line("a"), chat_line("b", model="gpt-none")])
    result = _validate(path)
    assert result.exit_code == 1
    assert "in.jsonl:2: duplicate_custom_id" in result.stdout
    assert "in.jsonl:3: model_not_found" in result.stdout


def test_twenty_errors_are_shown_unless_all_are_asked_for(tmp_path: Path) -> None:
    path = _file(tmp_path, [chat_line("same") for _ in range(31)])
    assert _validate(path).stdout.count("duplicate_custom_id") == 20
    assert "10 more errors" in _validate(path).stdout
    assert _validate(path, "--all").stdout.count("duplicate_custom_id") == 30


def test_a_dash_reads_stdin() -> None:
    assert _validate("-", stdin=jsonl([chat_line("a")])).exit_code == 0


def test_terminal_escapes_in_a_line_are_neutralised(tmp_path: Path) -> None:
    result = _validate(_file(tmp_path, [chat_line("\x1b[2J"), chat_line("\x1b[2J")]))
    assert result.exit_code == 1
    assert "\x1b" not in result.output


def test_a_missing_file_exits_1_and_says_which() -> None:
    result = _validate("no-such-file.jsonl")
    assert result.exit_code == 1
    assert "no-such-file.jsonl is not a file" in result.stderr


def test_a_file_above_the_limit_is_refused_before_it_is_sent(tmp_path: Path, configure: Any) -> None:
    configure(max_file_bytes=10)
    result = _validate(_file(tmp_path, [chat_line("a")]))
    assert result.exit_code == 1
    assert "file_too_large" in result.stdout


@pytest.mark.parametrize("command", ["run", "submit"])
def test_a_bad_file_is_refused_before_a_server_or_a_key_is_looked_for(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XALEN_DATA_DIR", str(tmp_path))
    result = CliRunner().invoke(app, [command, str(_file(tmp_path, [chat_line("a"), chat_line("a")]))])
    assert result.exit_code == 1
    assert "in.jsonl:2: duplicate_custom_id" in result.stderr
    assert result.stdout == ""
