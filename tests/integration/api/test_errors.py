"""Every failure comes in OpenAI's envelope, says what to do, and carries a request id."""

import socket
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import Mock
from uuid import UUID, uuid4

import openai
import pytest
from sqlalchemy import select, text

from tests.integration.conftest import Api, new_key
from xalen_batch import config, db
from xalen_batch.api.http import middleware
from xalen_batch.batches import lists
from xalen_batch.models import ApiKey
from xalen_batch.pipeline import finalize

REQUEST = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}


@pytest.mark.parametrize("key", [None, "xln_test_" + "0" * 32, "sk-nothing", "\xff\xfe"])
def test_no_key_and_a_wrong_key_are_401(api: Api, key: str | None) -> None:
    for path in ("/v1/files", "/v1/batches", "/v1/models"):
        answer = api.ask("GET", path, key=key)
        assert (answer.status, answer.error["type"], answer.error["code"]) == (
            401,
            "authentication_error",
            "invalid_api_key",
        )
        assert answer.headers["www-authenticate"] == "Bearer"


def test_expired_key_is_401(api: Api) -> None:
    answer = api.ask(
        "GET", "/v1/files", key=new_key(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    )
    assert (answer.status, "expired" in answer.error["message"]) == (401, True)


@pytest.mark.parametrize(
    ("scope", "method", "path"),
    [
        ("read", "POST", "/v1/batches"),
        ("read", "POST", "/v1/files"),
        ("read", "DELETE", "/v1/files/file-1"),
        ("submit", "GET", "/v1/files"),
        ("submit", "GET", "/v1/batches/batch_1"),
        ("read", "GET", "/v1/batches/batch_1/invoice"),
        ("submit", "GET", "/v1/statements/2026-11"),
    ],
)
def test_missing_scope_is_403(api: Api, scope: str, method: str, path: str) -> None:
    body = {"input_file_id": "x", **REQUEST} if path == "/v1/batches" else None
    answer = api.ask(method, path, body, key=new_key(scopes=[scope]))
    assert (answer.status, answer.error["type"]) == (403, "permission_error")


def test_unknown_route_is_404_and_wrong_method_405(api: Api) -> None:
    for path in ("/v1/nothing", "/nothing", "/v1/files/file-1/nothing"):
        answer = api.ask("GET", path)
        assert (answer.status, answer.error["type"], answer.error["code"]) == (
            404,
            "not_found_error",
            "unknown_url",
        ), path
    answer = api.ask("PUT", "/v1/files")
    assert (answer.status, answer.error["type"]) == (405, "invalid_request_error")
    assert answer.headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize(
    "id", ["batch_1", "batch_" + "0" * 32, "%00", "%ff", "'; DROP TABLE batches", "b" * 3000]
)
def test_an_id_that_is_none_is_404(api: Api, id: str) -> None:
    for path in (f"/v1/batches/{id}", f"/v1/files/{id}"):
        assert api.ask("GET", path.replace(" ", "%20")).error["type"] == "not_found_error"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b'"text"',
        b"\xff\xfe{\x00",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{" * 100_000,
        b"nan",
    ],
    ids=[
        "empty",
        "cut",
        "list",
        "null",
        "string",
        "utf-16",
        "deep list",
        "deep object",
        "deep braces",
        "nan",
    ],
)
@pytest.mark.parametrize(
    "kind", ["application/json", "text/plain", "application/x-www-form-urlencoded", ""]
)
def test_a_body_that_is_no_json_object_is_400(api: Api, body: bytes, kind: str) -> None:
    answer = api.ask("POST", "/v1/batches", body, headers={"content-type": kind} if kind else {})
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input_file_id": None}, "input_file_id"),
        ({"input_file_id": 7}, "input_file_id"),
        ({"input_file_id": "file-\ud800"}, "input_file_id"),
        ({"input_file_id": "file-" + "0" * 32}, "input_file_id"),
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "30m"}, "completion_window"),
        ({"completion_window": "8d"}, "completion_window"),
        ({"completion_window": "२४h"}, "completion_window"),
        ({"completion_window": None}, "completion_window"),
        ({"metadata": {"k" * 65: "v"}}, f"metadata.{'k' * 65}.[key]"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"metadata": {"k": "a\0b"}}, "metadata.k"),
        ({"metadata": {"k": "a\udfff"}}, "metadata.k"),
        ({"metadata": {str(n): "v" for n in range(17)}}, "metadata"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 10}},
            "output_expires_after.seconds",
        ),
        (
            {"output_expires_after": {"anchor": "now", "seconds": 3600}},
            "output_expires_after.anchor",
        ),
    ],
)
def test_a_wrong_value_is_400_and_named(api: Api, change: dict[str, Any], param: str) -> None:
    answer = api.ask(
        "POST", "/v1/batches", {"input_file_id": api.upload()["id"], **REQUEST, **change}
    )
    assert (answer.status, answer.error["type"], answer.error["param"]) == (
        400,
        "invalid_request_error",
        param,
    )
    assert api.ask("GET", "/v1/batches").json["data"] == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("inputFileId", "input_file_id"),
        ("completionWindow", "completion_window"),
        ("expires_after_seconds", "output_expires_after.seconds"),
        ("output_expires_after[seconds]", "output_expires_after.seconds"),
        ("expires_after", "output_expires_after"),
        ("execution-window", "execution_window"),
        ("meta_data", "metadata"),
    ],
)
def test_a_known_field_under_another_spelling_is_never_ignored(
    api: Api, name: str, meant: str
) -> None:
    answer = api.ask(
        "POST", "/v1/batches", {"input_file_id": api.upload()["id"], **REQUEST, name: 3600}
    )
    assert (answer.status, answer.error["code"], answer.error["param"]) == (
        400,
        "unknown_parameter",
        name,
    )
    assert f"`{meant}`" in answer.error["message"]
    assert api.ask("GET", "/v1/batches").json["data"] == []


def test_fields_of_other_gateways_are_ignored_and_whole_numbers_have_any_spelling(api: Api) -> None:
    extra = {
        "model": "x",
        "custom_llm_provider": "openai",
        "priority": 1,
        "service_tier": "flex",
        "name": "night",
        "user": "u",
    }
    life = {"anchor": "created_at", "seconds": 3600.0}
    answer = api.ask(
        "POST",
        "/v1/batches",
        {"input_file_id": api.upload()["id"], **REQUEST, **extra, "output_expires_after": life},
    )
    assert answer.status == 200


def test_a_missing_value_is_400_and_named(api: Api) -> None:
    answer = api.ask("POST", "/v1/batches", REQUEST)
    assert answer.error == {
        "message": (
            "Missing required parameter: `input_file_id`. Send the id of an uploaded file, or the"
            " requests themselves as `requests`."
        ),
        "type": "invalid_request_error",
        "param": "input_file_id",
        "code": "missing_required_parameter",
    }


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("limit=x", "limit"),
        ("order=up", "order"),
        ("after=x", "after"),
        ("purpose=%00", "purpose"),
    ],
)
def test_a_wrong_query_is_400_and_named(api: Api, query: str, param: str) -> None:
    answer = api.ask("GET", f"/v1/files?{query}")
    assert (answer.status, answer.error["param"]) == (400, param)


def test_a_json_body_over_the_limit_is_413(api: Api, configure: Any) -> None:
    configure(max_json_bytes=1000)
    answer = api.ask("POST", "/v1/batches", {"input_file_id": "x" * 5000, **REQUEST})
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    with pytest.raises(openai.APIStatusError) as caught:
        api.client.post(
            "/batches", body={"input_file_id": "x" * 3_000_000, **REQUEST}, cast_to=object
        )
    assert caught.value.status_code == 413


def test_a_file_of_another_purpose_is_no_input(api: Api) -> None:
    file = api.client.files.create(file=b"{}", purpose="user_data")
    assert file.expires_at is None
    answer = api.ask("POST", "/v1/batches", {"input_file_id": file.id, **REQUEST})
    assert (answer.status, answer.error["param"]) == (400, "input_file_id")
    assert "purpose `batch`" in answer.error["message"]


def test_cancel_takes_any_body_and_any_number_of_times(api: Api) -> None:
    batch = api.ask("POST", "/v1/batches", {"input_file_id": api.upload()["id"], **REQUEST}).json[
        "id"
    ]
    for body in (None, b"", b"not json", b"[" * 5000):
        assert (
            api.ask(
                "POST",
                f"/v1/batches/{batch}/cancel",
                body,
                headers={"content-type": "application/json"},
            ).status
            == 200
        )
    with db.transaction() as session:
        session.execute(text("UPDATE batches SET status = 'cancelled'"))
    answer = api.ask("POST", f"/v1/batches/{batch}/cancel")
    assert (answer.status, answer.json["status"]) == (200, "cancelled")


@pytest.mark.parametrize("status", ["completed", "failed", "expired", "finalizing"])
def test_cancel_after_any_other_end_is_409_and_not_repeated(api: Api, status: str) -> None:
    batch = api.ask("POST", "/v1/batches", {"input_file_id": api.upload()["id"], **REQUEST}).json[
        "id"
    ]
    with db.transaction() as session:
        session.execute(text(f"UPDATE batches SET status = '{status}'"))
    answer = api.ask("POST", f"/v1/batches/{batch}/cancel")
    assert (answer.status, answer.error["code"], answer.headers["x-should-retry"]) == (
        409,
        "batch_not_cancellable",
        "false",
    )
    with pytest.raises(openai.ConflictError):
        api.client.with_options(max_retries=2).batches.cancel(batch)


def test_an_input_is_deleted_once_its_cancelled_batch_has_ended(api: Api) -> None:
    file = api.upload()["id"]
    batch = api.ask("POST", "/v1/batches", {"input_file_id": file, **REQUEST}).json["id"]
    api.ask("POST", f"/v1/batches/{batch}/cancel")
    answer = api.ask("DELETE", f"/v1/files/{file}")
    assert (answer.status, answer.error["code"], answer.headers["x-should-retry"]) == (
        409,
        "file_in_use",
        "true",
    )
    assert float(answer.headers["retry-after"]) > 0
    finalize.run(UUID(hex=batch.removeprefix("batch_")))
    assert api.ask("DELETE", f"/v1/files/{file}").json["deleted"] is True


def test_a_bug_is_a_500_without_its_trace(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(lists, "page", fail)
    answer = api.ask("GET", "/v1/batches")
    assert (answer.status, answer.error["type"]) == (500, "server_error")
    assert b"secret" not in answer.body


def test_a_database_that_is_away_is_503_with_a_pause(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nowhere = free.getsockname()[1]
    db.engine().dispose()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XALEN_DATABASE_URL", f"postgresql://nobody@127.0.0.1:{nowhere}/none")
        config.settings.cache_clear()
        db.engine.cache_clear()
        answer = api.ask("GET", "/v1/batches")
        ready = api.ask("GET", "/readyz", key=None)
    config.settings.cache_clear()
    db.engine.cache_clear()
    assert (answer.status, answer.error["type"], answer.headers["retry-after"]) == (
        503,
        "server_error",
        "5",
    )
    assert (ready.status, ready.json["status"]) == (503, "unavailable")
    assert (
        ready.json["checks"]["database"]["status"]
        == ready.json["checks"]["migrations"]["status"]
        == "failed"
    )
    assert ready.json["checks"]["storage"]["status"] == "ok"


def test_the_request_id_is_ours(api: Api) -> None:
    mine = f"req_{uuid4().hex}"
    ids = {
        api.ask("GET", path, headers={"x-request-id": mine}).headers["x-request-id"]
        for path in ("/v1/files", "/nothing", "/livez")
    }
    assert len(ids) == 3
    assert mine not in ids


def test_a_stranger_is_refused_before_they_are_told_what_is_wrong_with_their_request(
    api: Api,
) -> None:
    for method, path, body in (
        ("POST", "/v1/batches", {}),
        ("POST", "/v1/batches", b"{"),
        ("GET", "/v1/batches?limit=0", None),
    ):
        answer = api.ask(method, path, body, headers={"content-type": "application/json"}, key=None)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert (
            api.ask(method, path, body, headers={"content-type": "application/json"}).status == 400
        )


@pytest.mark.parametrize(("scope", "status"), [("read", 200), ("billing", 403)])
def test_the_log_names_account_and_key_of_a_request_let_in_or_not(
    api: Api, monkeypatch: pytest.MonkeyPatch, scope: str, status: int
) -> None:
    logger = Mock()
    monkeypatch.setattr(middleware, "logger", logger)
    secret = new_key(scopes=[scope])
    assert api.ask("GET", "/v1/files", key=secret).status == status
    assert api.ask("GET", "/v1/files", key="xln_test_" + "0" * 32).status == 401
    with db.reading() as session:
        key = session.execute(select(ApiKey).order_by(ApiKey.id.desc()).limit(1)).scalar_one()
    named, unnamed = (call.kwargs for call in logger.info.call_args_list)
    assert (named["status"], named["account_id"], named["livemode"], named["key_id"]) == (
        status,
        key.account_id,
        False,
        key.id,
    )
    assert (unnamed["status"], "account_id" in unnamed) == (401, False)
