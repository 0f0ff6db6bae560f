"""`retry`, `retries` and `results --merged`: the requests that they send, and what they print."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.unit.cli.fake_api import Api, serving
from xalen_batch.cli.main import app


@pytest.fixture
def api() -> Iterator[Api]:
    with serving() as server:
        yield server


def run(api: Api, *args: str) -> Result:
    return CliRunner().invoke(app, [*args, "--base-url", api.base_url, "--api-key", "k"])


def batch(id: str = "batch_2", status: str = "validating", **fields: Any) -> dict[str, Any]:
    counts = {"total": 2, "completed": 1, "failed": 1, "cancelled": 0, "expired": 0}
    return {
        "id": id,
        "status": status,
        "endpoint": "/v1/chat/completions",
        "created_at": 1,
        "request_counts": counts,
        "retry_of": "batch_1",
        "retry_codes": ["batch_expired", "http_503"],
        **fields,
    }


def ok(body: Any, **headers: str) -> tuple[int, dict[str, str], bytes]:
    return 200, headers, body if isinstance(body, bytes) else json.dumps(body).encode()


def test_retry_prints_the_id_alone_on_stdout(api: Api) -> None:
    api.answers = [ok(batch())]
    result = run(api, "retry", "batch_1")
    assert (result.exit_code, result.stdout) == (0, "batch_2\n")
    assert "batch_expired, http_503" in result.stderr
    method, path, _, body = api.requests[0]
    assert (method, path, json.loads(body)) == ("POST", "/v1/batches/batch_1/retry", {})


def test_options_of_retry_are_fields_of_the_request(api: Api) -> None:
    api.answers = [ok(batch())]
    options = ["--code", "http_503", "--code", "x", "--window", "2h", "--metadata", "a=b", "--json"]
    result = run(api, "retry", "batch_1", *options)
    assert json.loads(result.stdout)["id"] == "batch_2"
    assert json.loads(api.requests[0][3]) == {
        "codes": ["http_503", "x"],
        "completion_window": "2h",
        "metadata": {"a": "b"},
    }


def test_a_refusal_is_passed_on(api: Api) -> None:
    error = {"error": {"message": "No line failed.", "param": None, "code": "nothing_to_retry"}}
    api.answers = [(400, {}, json.dumps(error).encode())]
    result = run(api, "retry", "batch_1")
    assert result.exit_code == 1
    assert "No line failed." in result.stderr


def test_retries_are_listed(api: Api) -> None:
    api.answers = [ok({"object": "list", "data": [batch()], "has_more": False})] * 2
    assert "batch_2" in run(api, "retries", "batch_1").stdout
    assert json.loads(run(api, "retries", "batch_1", "--json").stdout)["data"][0]["id"] == "batch_2"
    api.answers = [ok({"object": "list", "data": [], "has_more": False})]
    result = run(api, "retries", "batch_1")
    assert result.stdout == ""
    assert "`xalen-batch retry batch_1`" in result.stderr


def test_the_codes_of_a_retry_are_shown_as_words(api: Api) -> None:
    api.answers = [ok(batch(retry_codes=["http_400", "http_503"]))]
    assert "http_400, http_503" in run(api, "show", "batch_2").stdout


def test_merged_results_are_one_file(api: Api) -> None:
    lines = b'{"custom_id": "a"}\n{"custom_id": "b"}\n'
    api.answers = [
        ok(batch("batch_1", "completed")),
        ok(lines, **{"x-batch-complete": "false", "x-batch-lines-total": "2"}),
    ]
    result = run(api, "results", "batch_1", "--merged")
    assert (result.exit_code, result.stdout_bytes) == (0, lines)
    assert api.requests[1][1] == "/v1/batches/batch_1/output?merged=true"
    assert "a retry of batch_1 still runs" in result.stderr
    api.answers = [ok(batch("batch_1", "completed")), ok(lines, **{"x-batch-complete": "true"})]
    assert run(api, "results", "batch_1", "--merged", "--errors").exit_code == 0
    assert api.requests[3][1] == "/v1/batches/batch_1/errors?merged=true"
