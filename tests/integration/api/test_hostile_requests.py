"""Every hostile request on a real connection gets its answer in the API's envelope, and changes no
existing object.
"""

import http.client
import json
import socket
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlparse

import pytest
from sqlalchemy import text

from tests import factories
from tests.hostile.requests import END, FILE_NAMES, PURPOSE, REQUESTS, HostileRequest, part
from tests.integration.conftest import Api
from tests.integration.exchanges import Answer, exchange
from tests.waiting import PATIENCE
from xalen_batch import db, ids
from xalen_batch.config import settings
from xalen_batch.models import Base

# Every table but that of the keys, whose last use any answer may update.
UNTOUCHED = [table.name for table in Base.metadata.sorted_tables if table.name != "api_keys"]


class Hostile(NamedTuple):
    """An API with objects of two accounts, and the names that stand for them in the requests."""

    api: Api
    names: dict[bytes, bytes]

    def send(self, request: HostileRequest) -> Answer:
        return exchange(self.api.port, request.render(self.names), request.method)


@pytest.fixture
def hostile(api: Api) -> Hostile:
    file = api.upload(b"{}\n")["id"]
    batch = api.ask(
        "POST",
        "/v1/batches",
        {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    ).json["id"]
    with db.transaction() as session:
        other = factories.caller(session)
        their_file = factories.input_file(session, other, b"{}\n")
        their_batch = factories.batch(session, other, their_file)
        mine = factories.accounts.authenticate(session, api.key)
        live = factories.caller(
            session, session.get_one(factories.Account, mine.account_id), livemode=True
        )
        live_file = factories.input_file(session, live, b"{}\n")
    known = {
        "file": file,
        "batch": batch,
        "their_file": ids.render("file", their_file.id),
        "their_batch": ids.render("batch", their_batch.id),
        "live_file": ids.render("file", live_file.id),
        "key": api.key,
    }
    return Hostile(api, {b"{%b}" % name.encode(): value.encode() for name, value in known.items()})


def fingerprint() -> list[Any]:
    """All committed rows and all stored files."""
    digests = " UNION ALL ".join(
        f"SELECT '{name}', md5(coalesce(string_agg(md5(row::text), '' ORDER BY md5(row::text)),"
        f" '')) FROM {name} row"
        for name in UNTOUCHED
    )
    stored = [path for path in Path(urlparse(settings().storage).path).rglob("*") if path.is_file()]
    with db.reading() as session:
        return [
            *session.execute(text(digests)).all(),
            sorted((path.name, path.stat().st_size) for path in stored),
        ]


def problems(request: HostileRequest, answer: Answer) -> list[str]:
    found = []
    if answer.status != request.status:
        found.append(f"{answer.status} in place of {request.status}: {answer.body[:300]!r}")
    if b"Traceback" in answer.body or b'File "' in answer.body:
        found.append("a stack trace")
    ids_of_answer = [value for name, value in answer.headers if name.lower() == "x-request-id"]
    if len(ids_of_answer) != 1 or not ids_of_answer[0].startswith("req_"):
        found.append(f"no request id: {answer.headers}")
    if len(answer.body) > 5000 and answer.status >= 400:
        found.append(f"an error of {len(answer.body)} bytes")
    if answer.status >= 400 and request.method != "HEAD" and "/docs/" not in request.path:
        try:
            error = json.loads(answer.body)["error"]
        except (ValueError, KeyError, TypeError):
            return [*found, f"no envelope: {answer.body[:300]!r}"]
        if set(error) != {"message", "type", "param", "code"} or not error["message"]:
            found.append(f"an envelope of its own: {error}")
        # A case without a code allows any code but `invalid_http`: it is about something else.
        if error["code"] != request.code and (
            request.code is not None or error["code"] == "invalid_http"
        ):
            found.append(
                f"code {error['code']} in place of {request.code}: {error['message'][:100]}"
            )
    return found


def test_there_are_many_and_each_has_a_name() -> None:
    assert len({case.name for case in REQUESTS}) == len(REQUESTS) >= 60


def test_every_hostile_request_gets_its_answer_and_changes_nothing(hostile: Hostile) -> None:
    wrong: dict[str, list[str]] = {}
    before = fingerprint()
    for request in REQUESTS:
        try:
            found = problems(request, hostile.send(request))
        except (OSError, http.client.HTTPException) as error:
            found = [f"no answer: {error!r}"]
        after = fingerprint()
        if request.changes:
            if after == before:
                found.append("nothing was made")
        elif after != before:
            found.append("something was changed")
        before = after
        if found:
            wrong[request.name] = found
    assert wrong == {}
    assert hostile.api.ask("GET", "/livez", key=None).status == 200


@pytest.mark.parametrize(("sent", "kept"), FILE_NAMES.items(), ids=lambda name: repr(name)[:30])
def test_a_hostile_file_name_is_a_name_and_nothing_else(api: Api, sent: bytes, kept: str) -> None:
    body = part("file", b"{}\n", filename=sent) + PURPOSE + END
    file = api.ask(
        "POST", "/v1/files", body, headers={"content-type": "multipart/form-data; boundary=edge"}
    ).json
    assert file["filename"] == kept
    asked = (
        f"GET /v1/files/{file['id']}/content HTTP/1.1\r\nhost: x\r\nauthorization: Bearer"
        f" {api.key}\r\n\r\n"
    )
    answer = exchange(api.port, asked.encode())
    assert {name.lower() for name, _ in answer.headers} - {"date", "server"} == {
        "accept-ranges",
        "cache-control",
        "content-digest",
        "content-disposition",
        "content-length",
        "content-type",
        "etag",
        "repr-digest",
        "x-content-type-options",
        "x-request-id",
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
    }
    disposition = dict(answer.headers)["content-disposition"]
    assert disposition.isascii()
    assert disposition.isprintable()
    assert disposition.count('"') == 2
    plain = disposition.split('"')[1]
    assert not set(plain) & set("/\\")
    assert disposition.endswith(f"filename*=UTF-8''{quote(kept, safe='')}")
    assert answer.body == b"{}\n"


def test_a_line_break_in_a_file_name_ends_the_header_and_the_form_is_refused_or_cut(
    api: Api,
) -> None:
    body = part("file", b"{}\n", filename=b'a"\r\nset-cookie: x=1\r\nx: "') + PURPOSE + END
    answer = api.ask(
        "POST", "/v1/files", body, headers={"content-type": "multipart/form-data; boundary=edge"}
    )
    assert (answer.status, answer.json["filename"]) == (200, "a")
    assert "set-cookie" not in api.ask("GET", f"/v1/files/{answer.json['id']}/content").headers


def test_a_cursor_of_another_account_shows_nothing_of_theirs(hostile: Hostile) -> None:
    for kind in ("file", "batch"):
        other = hostile.names[b"{their_%b}" % kind.encode()].decode()
        path = "/v1/files" if kind == "file" else "/v1/batches"
        for order in ("asc", "desc") if kind == "file" else ("desc",):
            shown = hostile.api.ask(
                "GET", f"{path}?after={other}" + (f"&order={order}" if kind == "file" else "")
            ).json["data"]
            assert {item["id"] for item in shown} <= {
                hostile.names[b"{%b}" % kind.encode()].decode()
            }


def test_a_wrong_body_is_not_asked_for_before_it_is_known_who_sends_it(api: Api) -> None:
    head = (
        b"POST /v1/files HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length:"
        b" 1000000\r\ncontent-type: multipart/form-data; boundary=e\r\n\r\n"
    )
    answer = exchange(api.port, head)
    assert answer.status == 401


def test_a_second_request_on_the_connection_is_answered_after_the_first(api: Api) -> None:
    asked = f"GET /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {api.key}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", api.port), timeout=PATIENCE) as connection:
        connection.sendall(
            asked * 50 + b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
    assert received.count(b"HTTP/1.1 200 OK") == 51
    assert received.endswith(b'{"status":"ok"}')
