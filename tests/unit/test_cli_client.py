"""The client against a real server on the loopback: retries, streams and refusals."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.factories import chat_line, jsonl
from tests.unit.fake_api import CHAT, TERMS, Api, model, serving
from xalen_batch.cli import client as client_module
from xalen_batch.cli.client import ApiClient
from xalen_batch.cli.connection import ApiConnection
from xalen_batch.cli.failures import AUTH, ApiError, Failed, Unreachable
from xalen_batch.cli.main import app

KEY = "xln_test_secret"
BODY = bytes(range(256)) * 4096


@pytest.fixture
def api() -> Iterator[Api]:
    with serving() as server:
        yield server


@pytest.fixture
def client(api: Api, monkeypatch: pytest.MonkeyPatch) -> ApiClient:
    monkeypatch.setattr(client_module, "PAUSES", (0.01, 0.01))
    return ApiClient(ApiConnection(api.base_url, KEY))


def _error(status: int, **headers: str) -> tuple[int, dict[str, str], bytes]:
    return (
        status,
        headers,
        b'{"error": {"message": "Told so.", "type": "t", "param": "p", "code": null}}',
    )


def _ok(body: bytes = b'{"id": "x"}', **headers: str) -> tuple[int, dict[str, str], bytes]:
    return 200, headers, body


def test_a_get_carries_the_key_and_its_query(api: Api, client: ApiClient) -> None:
    api.answers = [_ok()]
    assert client.get("/batches", limit=2, after=None) == {"id": "x"}
    method, path, headers, _ = api.requests[0]
    assert (method, path, headers["authorization"]) == (
        "GET",
        "/v1/batches?limit=2",
        f"Bearer {KEY}",
    )


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_what_may_pass_is_tried_again(status: int, api: Api, client: ApiClient) -> None:
    api.answers = [_error(status), _error(status, **{"retry-after": "0"}), _ok()]
    assert client.get("/models") == {"id": "x"}


@pytest.mark.parametrize("status", [400, 403, 404, 413])
def test_what_will_not_pass_is_not_tried_again(status: int, api: Api, client: ApiClient) -> None:
    api.answers = [_error(status, **{"x-request-id": "req_7"})]
    with pytest.raises(ApiError) as failed:
        client.get("/models")
    assert str(failed.value) == f"Told so. (param: p) [HTTP {status}, request req_7]"


def test_what_the_server_says_about_trying_again_counts_more_than_the_status(
    api: Api, client: ApiClient
) -> None:
    api.answers = [_error(409, **{"x-should-retry": "false"})]
    with pytest.raises(ApiError, match="Told so"):
        client.get("/models")
    api.answers = [_error(400, **{"x-should-retry": "true"}), _ok()]
    assert client.get("/models") == {"id": "x"}


def test_a_long_pause_is_explained(
    api: Api, client: ApiClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(client_module.time, "sleep", slept.append)
    api.answers = [_error(429, **{"retry-after": "30"}), _error(429, **{"retry-after": "1"}), _ok()]
    assert client.get("/models") == {"id": "x"}
    assert slept == [30.0, 1.0]
    assert capsys.readouterr().err == "Told so. (param: p) [HTTP 429] Trying again in 30 s.\n"


def test_a_wait_beyond_patience_is_not_waited_for(api: Api, client: ApiClient) -> None:
    api.answers = [_error(429, **{"retry-after": "3600"})]
    with pytest.raises(ApiError, match="Told so"):
        client.get("/models")


def test_a_post_keeps_its_idempotency_key_over_retries(api: Api, client: ApiClient) -> None:
    api.answers = [_error(500), _ok(), _ok()]
    client.post("/batches", {"a": 1})
    client.post("/batches", {"a": 1})
    keys = [headers["idempotency-key"] for _, _, headers, _ in api.requests]
    assert keys[0] == keys[1] != keys[2]


def test_an_answer_that_is_kept_in_memory_has_a_longest(
    api: Api, client: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MOST_JSON", 100)
    api.answers = [_ok(b'{"id": "x"}' + b" " * 90), _ok(b"x" * 101)]
    with pytest.raises(Failed, match="more than 100 bytes"):
        client.get("/models")
    with pytest.raises(Failed, match="more than 100 bytes"):
        client.first_line("/files/1/content")


def test_a_change_and_a_deletion_are_tried_again(api: Api, client: ApiClient) -> None:
    api.answers = [_error(503), _ok(), _error(503), _ok()]
    assert client.patch("/schedules/1", {"a": None}) == {"id": "x"}
    assert client.delete("/schedules/1", discard="true", other=None) == {"id": "x"}
    assert [(method, path) for method, path, *_ in api.requests[1::2]] == [
        ("PATCH", "/v1/schedules/1"),
        ("DELETE", "/v1/schedules/1?discard=true"),
    ]
    assert api.requests[1][3] == b'{"a": null}'


def test_lines_are_posted_as_they_are_with_one_idempotency_key_over_retries(
    api: Api, client: ApiClient
) -> None:
    api.answers = [_error(500), _ok()]
    client.post_lines("/schedules/1/requests", b"{}\n\n{}\n")
    first, second = api.requests
    assert first == second
    assert (first[2]["content-type"], first[3]) == ("application/jsonl", b"{}\n\n{}\n")


@pytest.mark.parametrize("body", [b"\n \n{1}\n" + BODY, b"{1}\n", b"{1}"])
def test_the_first_line_with_text_is_read_and_the_rest_is_not_waited_for(
    body: bytes, api: Api, client: ApiClient
) -> None:
    api.answers = [_ok(body)]
    assert client.first_line("/files/1/content") == b"{1}"


def test_an_upload_is_a_form_that_a_retry_repeats_whole(
    api: Api, client: ApiClient, tmp_path: Path
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(BODY)
    api.answers = [_error(503), _ok()]
    heard: list[int] = []
    client.upload(path, 'na"me\r\n.jsonl', lambda done, _: heard.append(done))
    first, second = (body for *_, body in api.requests)
    assert first == second
    assert b'name="purpose"\r\n\r\nbatch\r\n' in first
    assert b'filename="na%22me%0D%0A.jsonl"' in first
    assert BODY in first
    assert heard[-1] == len(BODY)


def test_an_answer_before_the_upload_has_ended_counts(
    api: Api, client: ApiClient, tmp_path: Path
) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("wb") as out:
        out.truncate(64 * 1024 * 1024)
    api.reads_bodies = False
    api.answers = [_error(413, connection="close")]
    with pytest.raises(ApiError, match="HTTP 413"):
        client.upload(path, "large.jsonl", lambda *_: None)


def test_a_broken_download_goes_on_where_it_was(api: Api, client: ApiClient) -> None:
    broken = (200, {"content-length": str(len(BODY))}, BODY[:300_000])
    api.answers = [broken, _ok(BODY, **{"x-batch-complete": "true"})]
    received = bytearray()
    headers = client.download("/f", received.extend, lambda *_: None, is_fixed=True)
    assert bytes(received) == BODY
    assert headers["x-batch-complete"] == "true"


def test_a_broken_download_of_a_growing_body_is_not_patched_together(
    api: Api, client: ApiClient
) -> None:
    api.answers = [(200, {"content-length": str(len(BODY))}, BODY[:300_000])]
    with pytest.raises(Failed, match="middle of the answer"):
        client.download("/f", lambda _: None, lambda *_: None, is_fixed=False)


def test_redirects_are_not_followed(api: Api, client: ApiClient) -> None:
    api.answers = [(302, {"location": f"{api.base_url}/elsewhere"}, b"")]
    with pytest.raises(ApiError, match="HTTP 302"):
        client.get("/models")
    assert len(api.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST", "upload"])
def test_neither_key_nor_file_follows_a_redirect(
    status: int, method: str, api: Api, client: ApiClient, tmp_path: Path
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(BODY)
    send = {
        "GET": lambda: client.get("/models"),
        "POST": lambda: client.post("/batches", {}),
        "upload": lambda: upload(client, path),
    }
    with serving() as stranger:
        api.answers = [(status, {"location": f"{stranger.base_url}/files"}, b"")]
        with pytest.raises(
            ApiError,
            match=rf"redirects to http://127.0.0.1, and nothing was sent there \[HTTP {status}\]",
        ):
            send[method]()
        assert stranger.requests == []


def upload(client: ApiClient, path: Path) -> Any:
    return client.upload(path, "in.jsonl", lambda *_: None)


def test_a_page_that_is_not_json_is_no_answer(api: Api, client: ApiClient) -> None:
    api.answers = [_ok(b"<html>")]
    with pytest.raises(ApiError, match="did not answer in JSON"):
        client.get("/models")


def test_proxies_are_not_used_for_this_machine(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    api.answers = [_ok()]
    assert ApiClient(ApiConnection(api.base_url, KEY)).get("/models") == {"id": "x"}


@pytest.mark.parametrize(("scheme", "asked"), [("http", []), ("https", ["CONNECT"])])
def test_a_proxy_gets_no_key(
    scheme: str, asked: list[str], api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", api.base_url.removesuffix("/v1"))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr("socket.getaddrinfo", _only_loopback(socket.getaddrinfo))
    api.answers = [_error(403)]
    with pytest.raises(Unreachable):
        ApiClient(ApiConnection(f"{scheme}://server.example/v1", KEY)).get("/models")
    assert [method for method, *_ in api.requests] == asked
    assert KEY not in str(api.requests)


def _only_loopback(resolve: Callable[..., Any]) -> Callable[..., Any]:
    def look_up(host: str, *arguments: Any, **named: Any) -> Any:
        if host != "127.0.0.1":
            raise socket.gaierror(socket.EAI_NONAME, "no such host")
        return resolve(host, *arguments, **named)

    return look_up


def test_a_server_never_reached_fails_at_once() -> None:
    with pytest.raises(Unreachable, match="Connection refused"):
        ApiClient(ApiConnection("http://127.0.0.1:9/v1", KEY)).get("/models")


def test_a_server_without_tls_is_not_spoken_to_over_https(api: Api) -> None:
    with pytest.raises(Unreachable, match="speaks http, not https"):
        ApiClient(ApiConnection(api.base_url.replace("http://", "https://"), KEY)).get("/models")


def _run(api: Api, *arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments, "--base-url", api.base_url, "--api-key", KEY])


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_exits_4_and_is_never_printed(status: int, api: Api) -> None:
    api.answers = [_error(status)]
    result = _run(api, "list")
    assert result.exit_code == AUTH
    assert result.stderr.startswith("Error: Told so.")
    assert KEY not in result.output


def test_another_error_exits_1(api: Api) -> None:
    api.answers = [_error(404)]
    assert _run(api, "show", "batch_1").exit_code == 1


def _batch(status: str, **fields: Any) -> bytes:
    import json

    counts = {"total": 2, "completed": 2, "failed": 0}
    return json.dumps(
        {
            "id": "batch_1",
            "status": status,
            "input_file_id": "f",
            "errors": None,
            "request_counts": counts,
        }
        | fields
    ).encode()


@pytest.mark.parametrize(
    ("status", "failed", "code"),
    [
        ("completed", 0, 0),
        ("completed", 1, 3),
        ("failed", 0, 3),
        ("expired", 0, 3),
        ("cancelled", 0, 3),
    ],
)
def test_watch_tells_by_its_exit_code_how_the_batch_ended(
    status: str, failed: int, code: int, api: Api
) -> None:
    api.answers = [
        _ok(_batch(status, request_counts={"total": 2, "completed": 2 - failed, "failed": failed}))
    ]
    assert _run(api, "watch", "batch_1").exit_code == code


def test_in_a_pipe_watch_says_each_status_once_and_the_outcome_last(api: Api) -> None:
    api.answers = [
        _ok(_batch(status)) for status in ("validating", "in_progress", "in_progress", "completed")
    ]
    assert _run(api, "watch", "batch_1").stderr.splitlines() == [
        "batch_1 validating 2/2 lines, 0 failed",
        "batch_1 in_progress 2/2 lines, 0 failed",
        "batch_1 completed: 2 of 2 lines succeeded",
    ]


def test_watch_names_the_command_that_shows_what_did_not_succeed(api: Api) -> None:
    api.answers = [
        _ok(_batch("completed", request_counts={"total": 2, "completed": 1, "failed": 1}))
    ]
    assert "`xalen-batch results batch_1 --errors`" in _run(api, "watch", "batch_1").stderr
    for number, is_cut in ((20, False), (21, True)):
        errors = {
            "data": [{"line": n, "code": "c", "message": "m", "param": None} for n in range(number)]
        }
        api.answers = [
            _ok(
                _batch(
                    "failed",
                    errors=errors,
                    request_counts={"total": 0, "completed": 0, "failed": 0},
                )
            )
        ]
        assert (
            "`xalen-batch show batch_1` shows every error." in _run(api, "watch", "batch_1").stderr
        ) is is_cut


def test_watch_gives_up_with_5_and_says_that_the_batch_goes_on(api: Api) -> None:
    api.answers = [_ok(_batch("in_progress"))]
    result = _run(api, "watch", "batch_1", "--timeout", "0")
    assert result.exit_code == 5
    assert "The batch goes on; `xalen-batch watch batch_1` waits again." in result.stderr


def test_results_of_a_running_batch_are_asked_for_by_name(api: Api) -> None:
    api.answers = [_ok(_batch("in_progress"))]
    result = _run(api, "results", "batch_1")
    assert result.exit_code == 1
    assert "--partial" in result.stderr


def test_what_a_running_batch_gave_is_counted_as_it_came(api: Api) -> None:
    lines = b'{"custom_id": "a"}\n' * 1_234
    headers = {
        "x-batch-complete": "false",
        "x-batch-lines-done": "1000",
        "x-batch-lines-total": "50000",
    }
    api.answers = [_ok(_batch("in_progress")), _ok(lines, **headers)]
    result = _run(api, "results", "batch_1", "--partial")
    assert (result.exit_code, result.stdout_bytes) == (0, lines)
    assert "1,234 lines that succeeded so far, of 50,000 in the batch" in result.stderr


def test_a_batch_that_failed_validation_has_no_results(api: Api) -> None:
    api.answers = [_ok(_batch("failed"))]
    result = _run(api, "results", "batch_1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "failed validation" in result.stderr
    assert "`xalen-batch show batch_1`" in result.stderr


@pytest.mark.parametrize("command", ["watch", "show", "results", "cancel", "invoice"])
def test_what_is_no_id_of_a_batch_is_not_asked_for(command: str, api: Api) -> None:
    result = _run(api, command, "file-0192")
    assert (result.exit_code, api.requests) == (2, [])
    assert "is not the id of a batch, `batch_…`" in " ".join(
        result.stderr.replace("│", " ").split()
    )


def test_results_are_passed_on_byte_by_byte(api: Api) -> None:
    api.answers = [_ok(_batch("completed")), _ok(BODY)]
    assert _run(api, "results", "batch_1").stdout_bytes == BODY


def test_submit_prints_the_id_alone_on_stdout(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl([chat_line("a")]))
    api.answers = [_ok(b'{"id": "file-1"}'), _ok(_batch("validating"))]
    result = _run(api, "submit", str(path), "--metadata", "k=v", "--window", "7d")
    assert (result.exit_code, result.stdout) == (0, "batch_1\n")
    assert b'"completion_window": "7d", "metadata": {"k": "v"}' in api.requests[1][3]


def test_invalid_lines_are_named_and_skipped_if_that_is_asked_for(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl([chat_line("a"), chat_line("a"), chat_line("b", messages=[])]))
    refused = _run(api, "submit", str(path))
    assert (refused.exit_code, api.requests) == (1, [])
    assert "--on-invalid skip runs the other lines." in refused.stderr
    api.answers = [_ok(b'{"id": "file-1"}'), _ok(_batch("validating"))]
    result = _run(api, "submit", str(path), "--on-invalid", "skip")
    assert (result.exit_code, result.stdout) == (0, "batch_1\n")
    assert "in.jsonl:2: duplicate_custom_id" in result.stderr
    assert "2 invalid lines of in.jsonl will be skipped" in result.stderr
    assert b'"on_invalid": "skip"' in api.requests[1][3]


def test_a_file_with_a_fault_of_its_own_is_not_sent_even_so(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"")
    assert _run(api, "submit", str(path), "--on-invalid", "skip").exit_code == 1
    assert api.requests == []


def test_a_final_conflict_is_not_repeated(api: Api) -> None:
    api.answers = [
        (
            409,
            {"x-should-retry": "false"},
            b'{"error": {"message": "It is completed.", "code": "batch_not_cancellable"}}',
        )
    ]
    assert _run(api, "cancel", "batch_1").exit_code == 1
    assert len(api.requests) == 1


def test_the_outcome_names_lines_that_nobody_ran(api: Api) -> None:
    counts = {"total": 9, "completed": 2, "failed": 1, "cancelled": 6, "expired": 0}
    api.answers = [_ok(_batch("cancelled", request_counts=counts))]
    assert (
        "cancelled: 2 of 9 lines succeeded, 1 failed, 6 cancelled"
        in _run(api, "watch", "batch_1").stderr
    )


def test_a_file_is_checked_by_the_servers_models(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl([chat_line("a", model="new-model")]))
    refused = _run(api, "submit", str(path))
    assert (refused.exit_code, api.requests) == (1, [])
    assert "in.jsonl:1: model_not_found" in refused.stderr
    api.terms = {**TERMS, "models": [model("new-model", CHAT, input="1")]}
    api.answers = [_ok(b'{"id": "file-1"}'), _ok(_batch("validating"))]
    assert _run(api, "submit", str(path)).exit_code == 0
    assert b'"endpoint": "/v1/chat/completions"' in api.requests[1][3]


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        (
            {"models": [model("mistral-small-3-1", CHAT, answered_by=None, input="1")]},
            "model_has_no_backend: mistral-small-3-1 has no live",
        ),
        (
            {"models": [model("mistral-small-3-1", CHAT)]},
            "model_not_priced: mistral-small-3-1 has no price in force",
        ),
        ({"max_batch_lines": 1}, "too_many_tasks"),
        ({"max_file_bytes": 100}, "file_too_large"),
        ({"max_line_bytes": 10}, "line_too_long"),
    ],
)
def test_what_the_server_would_refuse_is_not_uploaded(
    api: Api, tmp_path: Path, terms: dict[str, Any], words: str
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl([chat_line("a"), chat_line("b")]))
    api.terms = TERMS | terms
    refused = _run(api, "submit", str(path))
    assert (refused.exit_code, api.requests) == (1, [])
    assert words in refused.stderr


def test_a_server_that_does_not_tell_its_models_decides_by_itself(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl([chat_line("a", model="new-model")]))
    api.terms = None
    api.answers = [_ok(b'{"id": "file-1"}'), _ok(_batch("validating"))]
    assert _run(api, "submit", str(path)).exit_code == 0
    # Not `auto`, which no server knows.
    assert b'"endpoint": "/v1/chat/completions"' in api.requests[1][3]
    path.write_bytes(jsonl([chat_line("a"), chat_line("a")]))
    assert _run(api, "submit", str(path)).exit_code == 1


def test_list_pages_until_it_has_enough(api: Api) -> None:
    pages = [
        f'{{"data": [{_batch("completed").decode()}], "has_more": true, "last_id": "batch_{n}"}}'.encode()
        for n in (1, 2)
    ]
    api.answers = [_ok(page) for page in pages]
    result = _run(api, "list", "--limit", "2", "--json")
    assert result.exit_code == 0
    assert [path for _, path, *_ in api.requests] == [
        "/v1/batches?limit=2",
        "/v1/batches?limit=1&after=batch_1",
    ]


def test_descriptors_are_not_leaked(api: Api, client: ApiClient) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    api.answers = [_ok() for _ in range(20)]
    for _ in range(20):
        client.get("/models")
    after = len(os.listdir("/proc/self/fd")) if before else 0
    assert after - before < 10
