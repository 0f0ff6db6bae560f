"""`validate`: every error with its line, costs, exit codes, and by whose models and prices."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.factories import CHAT_MODEL, RERANK_MODEL, chat_line, jsonl, rerank_line
from tests.unit.cli.fake_api import CHAT, TERMS, Api, model, serving
from xalen_batch.cli.main import app


@pytest.fixture(autouse=True)
def _no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XALEN_DATA_DIR", str(tmp_path / "data"))


def _validate(file: Path | str, *options: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["validate", str(file), *options], input=stdin)


def _file(folder: Path, lines: list[dict[str, Any]]) -> Path:
    path = folder / "in.jsonl"
    path.write_bytes(jsonl(lines))
    return path


def test_a_good_file_exits_0_with_its_cost_per_model(tmp_path: Path) -> None:
    lines = [
        chat_line("a"),
        chat_line("b", json.dumps({"query": "q", "documents": ["d"]}), model=RERANK_MODEL),
    ]
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
    assert "--all shows every error." in _validate(path).stderr
    assert _validate(path, "--all").stdout.count("duplicate_custom_id") == 30
    assert "--all" not in _validate(path, "--all").stderr


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


def test_a_file_above_the_limit_is_refused_before_it_is_sent(
    tmp_path: Path, configure: Any
) -> None:
    configure(max_upload_bytes=10)
    result = _validate(_file(tmp_path, [chat_line("a")]))
    assert result.exit_code == 1
    assert "file_too_large" in result.stdout


def _to(api: Api) -> list[str]:
    return ["--base-url", api.base_url, "--api-key", "xln_test_secret"]


def test_models_and_prices_are_the_servers_and_nothing_is_sent(tmp_path: Path) -> None:
    path = _file(tmp_path, [chat_line("a", model="new-model", max_tokens=1)])
    with serving() as api:
        api.terms = {
            **TERMS,
            "batch_discount": "0.25",
            "models": [model("new-model", CHAT, input="1000000", output="1000000")],
        }
        result = _validate(path, *_to(api))
        found = json.loads(_validate(path, "--json", *_to(api)).stdout)
        assert api.requests == []
    assert (result.exit_code, found["discount_rate"]) == (0, "0.25")
    tokens = found["models"][0]["input_tokens"] + 1
    assert Decimal(found["expected_cost"]) == tokens * Decimal("0.75")
    assert f"Checked with the models and prices of {api.base_url}, in test mode." in result.stderr
    assert found["checked_with"] == f"models and prices of {api.base_url}, in test mode"


def test_without_a_server_it_says_whose_prices_they_are(tmp_path: Path, configure: Any) -> None:
    path = _file(tmp_path, [chat_line("a")])
    assert (
        "Checked with the built-in catalog (XALEN_CATALOG names no file). No server was asked"
        in _validate(path).stderr
    )
    catalog = tmp_path / "catalog.toml"
    catalog.write_text("")
    configure(catalog=catalog)
    with serving() as api:
        api.terms = None
        assert (
            f"Checked with {catalog} over the built-in catalog. No server was asked"
            in _validate(path, "--local", *_to(api)).stderr
        )
        assert "does not tell this key its models and prices" in _validate(path, *_to(api)).stderr


def test_a_server_that_was_named_has_to_answer_and_one_that_is_remembered_may_be_away(
    tmp_path: Path,
) -> None:
    path, nobody = _file(tmp_path, [chat_line("a")]), "http://127.0.0.1:9/v1"
    named = _validate(path, "--base-url", nobody, "--api-key", "xln_test_a")
    assert named.exit_code == 1
    assert "With --local, no server is asked." in named.stderr
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "credentials.toml").write_text(
        f'base_url = "{nobody}"\ntest_key = "xln_test_a"\n'
    )
    remembered = _validate(path)
    assert remembered.exit_code == 0
    assert "Going on without it." in remembered.stderr
    assert "No server was asked" not in _validate(path, "--json").stdout


@pytest.mark.parametrize("command", ["run", "submit"])
def test_a_bad_file_is_refused_before_any_of_it_is_sent(command: str, tmp_path: Path) -> None:
    with serving() as api:
        result = CliRunner().invoke(
            app, [command, str(_file(tmp_path, [chat_line("a"), chat_line("a")])), *_to(api)]
        )
        assert api.requests == []
    assert result.exit_code == 1
    assert "in.jsonl:2: duplicate_custom_id" in result.stderr
    assert result.stdout == ""
