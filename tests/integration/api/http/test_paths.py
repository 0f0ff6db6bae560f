"""The address of a request: HEAD, slashes, wrong base URLs, live calls, and TLS on the port of
plain HTTP.
"""

import logging
import socket
import ssl
from collections import defaultdict
from collections.abc import Iterator

import openai
import pytest
from structlog.testing import capture_logs

from tests.described import description
from tests.integration.conftest import Api
from tests.waiting import PATIENCE, wait_until
from xalen_batch import storage
from xalen_batch.results import results

CONTENT = b'{"custom_id": "a"}\n' * 1000


DESCRIBED = description()["paths"]
PAGES = {
    "/",
    "/v1",
    "/docs",
    "/openapi.json",
    "/docs/assets/favicon.png",
    "/schemas/batch-line.json",
    "/schemas/result-line.json",
}


def test_head_has_the_status_and_the_headers_of_get_and_no_body(api: Api) -> None:
    file = api.upload(CONTENT)["id"]
    batch = api.ask(
        "POST",
        "/v1/batches",
        {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    )
    ids = defaultdict(
        lambda: "x",
        file_id=file,
        batch_id=batch.json["id"],
        message_batch_id=f"msg{batch.json['id']}",
        month="2026-10",
        model_id="mistral-small-3-1",
    )
    for path in sorted(
        PAGES | {path.format_map(ids) for path, methods in DESCRIBED.items() if "get" in methods}
    ):
        got, head = api.ask("GET", path), api.ask("HEAD", path)
        changing = {
            "date",
            "x-request-id",
            "request-id",
            "x-ratelimit-remaining-requests",
            "x-ratelimit-reset-requests",
            "transfer-encoding",
            # The digest of the body, which HEAD has not.
            "content-digest",
        }
        if path in ("/readyz", "/v1/limits"):
            changing |= {"content-length"}
        shown = [
            {name: value for name, value in answer.headers.items() if name not in changing}
            for answer in (got, head)
        ]
        assert (head.status, head.body) == (got.status, b""), path
        assert shown[0] == shown[1], path


def test_head_of_a_download_reads_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    file = api.upload(CONTENT)["id"]
    batch = api.ask(
        "POST",
        "/v1/batches",
        {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    ).json

    def refuse(*_: object) -> Iterator[bytes]:
        raise AssertionError("a HEAD read the content")
        yield b""

    monkeypatch.setattr(storage, "chunks", refuse)
    monkeypatch.setattr(results, "chunks", refuse)
    head = api.ask("HEAD", f"/v1/files/{file}/content")
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(CONTENT)), b"")
    assert api.ask("HEAD", f"/v1/batches/{batch['id']}/output").status == 200


def test_head_needs_a_key_and_a_path_like_get(api: Api) -> None:
    assert api.ask("HEAD", "/v1/files", key=None).status == 401
    assert api.ask("HEAD", "/v1/nothing").status == 404


def test_allow_names_every_method_of_a_path(api: Api) -> None:
    sample = defaultdict[str, str](lambda: "x")
    declared = {path: {"GET"} for path in PAGES}
    declared |= {
        path.format_map(sample): set(map(str.upper, methods)) for path, methods in DESCRIBED.items()
    }
    # `/v1/batches/estimate` is also the path of a batch with that id.
    declared["/v1/batches/estimate"] |= declared["/v1/batches/x"]
    declared["/v1/schedules/preview"] |= declared["/v1/schedules/x"]
    for path, methods in declared.items():
        answer = api.ask("PUT", path)
        assert answer.status == 405, path
        assert set(answer.headers["allow"].split(", ")) == methods | (
            {"HEAD"} if "GET" in methods else set()
        ), path


def test_slashes_more_or_less_do_not_matter(api: Api) -> None:
    for path in ("/v1/batches/", "//v1//batches", "/v1/batches//", "//v1/batches?limit=1"):
        assert api.ask("GET", path).json["object"] == "list", path


def test_a_path_with_slashes_is_admitted_and_logged_like_its_route(api: Api) -> None:
    with capture_logs() as events:
        assert api.ask("HEAD", "//v1/batches/").status == 200
        # It is logged once the answer has left.
        wait_until(lambda: [event for event in events if event["event"] == "api.request"])
    logged = next(event for event in events if event["event"] == "api.request")
    assert (logged["method"], logged["route"], logged["status"]) == ("HEAD", "/v1/batches", 200)
    refused = api.ask(
        "POST",
        "/v1//schedules//preview/",
        b" " * 2_000_000,
        headers={"content-type": "application/json"},
    )
    assert (refused.status, refused.error["code"]) == (413, "request_too_large")
    client = openai.OpenAI(
        base_url=f"http://127.0.0.1:{api.port}//v1/", api_key=api.key, max_retries=0
    )
    assert client.files.create(file=("a.jsonl", CONTENT), purpose="batch").bytes == len(CONTENT)


@pytest.mark.parametrize("path", ["/", "/v1/"])
def test_the_root_says_what_this_is(api: Api, path: str) -> None:
    origin = f"http://127.0.0.1:{api.port}"
    about = api.ask("GET", path, key=None)
    assert about.status == 200
    assert about.json["name"] == "xalen-batch"
    assert about.json["base_url"] == f"{origin}/v1"
    for link in ("docs", "openapi"):
        assert api.ask("GET", about.json[link].removeprefix(origin), key=None).status == 200
    page = api.ask(
        "GET", path, key=None, headers={"accept": "text/html,*/*;q=0.8", "host": "<b>x</b>"}
    )
    assert page.headers["content-type"].startswith("text/html")
    assert b"base_url" in page.body
    assert b"<b>" not in page.body


def test_a_wrong_base_url_is_told_the_right_one(api: Api) -> None:
    for path, meant in {
        "/files": "/v1/files",
        "/batches/batch_1/cancel": "/v1/batches/batch_1/cancel",
        "/v1/v1/batches": "/v1/batches",
        "/proxy/v1/files": "/v1/files",
        "/proxy/deployments/gpt/batches": "/v1/batches",
        "/models": "/v1/models",
    }.items():
        message = api.ask("GET", path).error["message"]
        assert (
            f"Did you mean {meant}? Set the client's base_url to http://127.0.0.1:{api.port}/v1."
            in message
        )


def test_other_paths_are_told_where_the_docs_are(api: Api) -> None:
    for path in ("/nothing", "/v1/nothing", "/v1/batches/x/files", "/" + "x/" * 20_000):
        answer = api.ask("GET", path)
        assert (answer.status, answer.error["code"]) == (404, "unknown_url")
        assert answer.error["message"].endswith(
            f"See http://127.0.0.1:{api.port}/docs for the URLs that exist."
        )


def test_a_live_call_under_another_path_is_told_the_base_url(api: Api) -> None:
    for path in ("/chat/completions", "/v1/v1/chat/completions", "/proxy/v1/responses"):
        message = api.ask("POST", path, {"model": "x"}).error["message"]
        assert f"Set the client's base_url to http://127.0.0.1:{api.port}/v1." in message


def test_tls_on_the_plain_port_is_told_to_use_http(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(("127.0.0.1", api.port), timeout=PATIENCE) as plain:
        plain.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200))
        answer = b"".join(iter(lambda: plain.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Use http:// in its base_url." in answer
    with (
        socket.create_connection(("127.0.0.1", api.port), timeout=PATIENCE) as plain,
        pytest.raises(ssl.SSLError),
    ):
        ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")
    assert api.ask("GET", "/livez").status == 200
    assert [
        record for record in caplog.records if record.exc_info or record.levelno > logging.INFO
    ] == []
