"""The bytes that the API holds for clients are bounded: bodies are read after admission, answers
are sent as they are read.
"""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import orjson
import pytest

from tests.described import description
from tests.integration import isolation
from tests.integration.conftest import Api, multipart, new_key
from tests.waiting import wait_until
from xalen_batch import db, ids, storage
from xalen_batch.accounts import accounts
from xalen_batch.accounts.accounts import Owner
from xalen_batch.api import batches, files, receive, schedules
from xalen_batch.api.http import budget, middleware, responses
from xalen_batch.config import MiB
from xalen_batch.results import content
from xalen_batch.results.content import Rendered

SCHEDULE = {"name": "s", "cron": "0 0 1 1 *", "endpoint": "/v1/chat/completions"}


def routes() -> list[tuple[str, str]]:
    """Every method and path of the API that needs a key."""
    paths = description()["paths"]
    return sorted(
        (method.upper(), path)
        for path, methods in paths.items()
        for method in methods
        if path.startswith("/v1/") and path not in isolation.PUBLIC
    )


def owner(key: str) -> Owner:
    with db.reading() as session:
        return budget.key(accounts.authenticate(session, key)) or pytest.fail("no such key")


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def begin(
    api: Api,
    opened: ExitStack,
    method: str,
    path: str,
    *headers: str,
    key: str | None = None,
    sent: bytes = b"",
) -> socket.socket:
    """A request whose head, and perhaps part of its body, has been sent."""
    kind = (
        ()
        if any(header.startswith("content-type") for header in headers)
        else ("content-type: application/json",)
    )
    named = [f"authorization: Bearer {key or api.key}", *kind, *headers]
    client = opened.enter_context(socket.socket())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    client.settimeout(30)
    client.connect(("127.0.0.1", api.port))
    client.sendall(
        "\r\n".join([f"{method} {path} HTTP/1.1", "host: x", *named, "", ""]).encode() + sent
    )
    return client


def answered(client: socket.socket) -> tuple[int, dict[str, Any], bytes]:
    """The status of a short answer, its error or object, and its head."""
    received = b""
    while b"\r\n\r\n" not in received:
        data = client.recv(65_536)
        assert data, "the connection ended before an answer"
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(
        int(line.partition(b":")[2])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    while len(body) < length:
        body += client.recv(65_536)
    found: dict[str, Any] = json.loads(body)
    return int(head.split()[1]), found.get("error", found), head.lower()


def schedule(api: Api, **what: Any) -> str:
    made = api.ask("POST", "/v1/schedules", {**SCHEDULE, **(what or {"inbox": {}})})
    assert made.status == 200, made.body
    return str(made.json["id"])


class TestHeadersFirst:
    @pytest.mark.parametrize(("method", "path"), routes())
    def test_a_stranger_is_refused_before_a_body_comes(
        self, api: Api, opened: ExitStack, method: str, path: str
    ) -> None:
        client = begin(
            api,
            opened,
            method,
            path.replace("{", "").replace("}", ""),
            "content-length: 1000000",
            key="sk-wrong",
        )
        assert answered(client)[:2][0] == 401

    @pytest.mark.parametrize(
        "headers", [("content-length: 900000",), ("transfer-encoding: chunked",)]
    )
    def test_a_key_without_the_scope_is_refused_before_a_body_comes(
        self, api: Api, opened: ExitStack, headers: tuple[str, ...]
    ) -> None:
        key = new_key(scopes=["read"])
        assert answered(begin(api, opened, "POST", "/v1/batches", *headers, key=key))[0] == 403

    @pytest.mark.parametrize("path", ["/v1/batches", "/v1/schedules", "/v1/schedules/sched_x/run"])
    def test_a_body_that_says_it_is_too_long_is_refused_before_it_comes(
        self, api: Api, opened: ExitStack, path: str
    ) -> None:
        status, error, _ = answered(begin(api, opened, "POST", path, "content-length: 900000000"))
        assert (status, error["code"]) == (413, "request_too_large")

    def test_a_body_for_an_inbox_that_is_not_there_is_refused_before_it_comes(
        self, api: Api, opened: ExitStack
    ) -> None:
        theirs = schedule(Api(api.port, new_key()))
        for path in ("/v1/schedules/sched_x/requests", f"/v1/schedules/{theirs}/requests"):
            for more in ((), ("idempotency-key: a",)):
                status, error, _ = answered(
                    begin(api, opened, "POST", path, "content-length: 1000000", *more)
                )
                assert (status, error["code"]) == (404, "not_found")

    def test_a_body_for_a_schedule_without_an_inbox_is_refused_before_it_comes(
        self, api: Api, opened: ExitStack
    ) -> None:
        file = api.upload(
            b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"mistral-small-3-1","messages":[{"role":"user","content":"x"}]}}\n'
        )
        path = f"/v1/schedules/{schedule(api, input_file_id=file['id'])}/requests"
        status, error, _ = answered(begin(api, opened, "POST", path, "content-length: 1000000"))
        assert (status, error["code"]) == (400, "no_inbox")

    def test_a_request_with_a_body_counts_once_against_the_rate(
        self, api: Api, configure: Callable[..., None]
    ) -> None:
        configure(quota_requests_per_second=1000)
        left = [
            int(
                api.ask(
                    "POST", "/v1/batches", body, headers={"content-type": "application/json"}
                ).headers["x-ratelimit-remaining-requests"]
            )
            for body in (
                b"{",
                b'{"input_file_id": 3}',
                b'{"input_file_id":"x","endpoint":"/v1/rerank","completion_window":"24h"}',
            )
        ]
        assert left[0] >= 998
        assert all(later >= earlier - 1 for earlier, later in pairwise(left))


class TestBodies:
    @pytest.fixture(autouse=True)
    def _small(self, configure: Callable[..., None]) -> None:
        configure(max_inbox_bytes=MiB, held_bytes=5 * MiB)

    def test_an_account_that_holds_its_share_is_429_and_others_are_served(
        self, api: Api, opened: ExitStack
    ) -> None:
        path, mine = f"/v1/schedules/{schedule(api)}/requests", owner(api.key)
        whole = f"content-length: {MiB}"
        slow = begin(api, opened, "POST", path, whole, sent=b"[")
        wait_until(lambda: budget.bodies.held(mine) == MiB)
        status, error, head = answered(begin(api, opened, "POST", path, whole, sent=b"["))
        assert (status, error["type"], error["code"]) == (429, "rate_limit_error", "bodies_limit")
        assert b"retry-after: 1" in head
        other = Api(api.port, new_key())
        # A small body still fits, and so does any body of another account.
        assert other.ask("POST", f"/v1/schedules/{schedule(other)}/requests", b"[]").status == 400
        slow.close()
        wait_until(lambda: budget.bodies.held(mine) == 0)
        assert (
            api.ask("POST", path, b"[" + b" " * (MiB - 2) + b"]").json["error"]["code"]
            != "bodies_limit"
        )

    def test_a_body_of_unknown_length_counts_as_it_comes(self, api: Api, opened: ExitStack) -> None:
        path, mine = f"/v1/schedules/{schedule(api)}/requests", owner(api.key)
        begin(
            api,
            opened,
            "POST",
            path,
            "transfer-encoding: chunked",
            sent=b"1000\r\n" + b" " * 4096 + b"\r\n",
        )
        wait_until(lambda: budget.bodies.held(mine) == 4096)

    def test_uploads_under_way_count_with_what_they_hold(
        self, api: Api, opened: ExitStack, configure: Callable[..., None]
    ) -> None:
        configure(held_bytes=5 * receive.UPLOAD_BYTES, max_inbox_bytes=MiB)
        kind, body = multipart(("purpose", None, b"batch"), ("file", "a.jsonl", b"{}\n"))
        upload, mine = (f"content-type: {kind}", f"content-length: {len(body)}"), owner(api.key)
        first = begin(api, opened, "POST", "/v1/files", *upload, sent=body[:-1])
        wait_until(lambda: budget.bodies.held(mine) == receive.UPLOAD_BYTES)
        status, error, _ = answered(begin(api, opened, "POST", "/v1/files", *upload))
        assert (status, error["code"]) == (429, "bodies_limit")
        first.sendall(body[-1:])
        assert answered(first)[0] == 200
        assert api.ask("POST", "/v1/files", body, headers={"content-type": kind}).status == 200

    def test_nothing_is_held_once_it_is_answered(self, api: Api) -> None:
        for body in (
            b"{",
            b'{"input_file_id":"x","endpoint":"/v1/rerank","completion_window":"24h"}',
        ):
            assert (
                api.ask(
                    "POST", "/v1/batches", body, headers={"content-type": "application/json"}
                ).status
                == 400
            )
        wait_until(lambda: budget.bodies.held(owner(api.key)) == 0)


class TestAnswers:
    def test_unread_downloads_of_one_account_are_bounded_and_others_are_served(
        self, api: Api, opened: ExitStack, configure: Callable[..., None]
    ) -> None:
        configure(held_bytes=10 * responses.STREAM_BYTES, max_inbox_bytes=MiB)
        # More than the kernel's buffers hold for a client.
        file, mine = api.upload(bytes(24 * MiB)), owner(api.key)
        path = f"/v1/files/{file['id']}/content"
        unread = [begin(api, opened, "GET", path) for _ in range(2)]
        wait_until(lambda: budget.answers.held(mine) == 2 * responses.STREAM_BYTES)
        status, error, head = answered(begin(api, opened, "GET", path))
        assert (status, error["type"], error["code"]) == (429, "rate_limit_error", "answers_limit")
        assert b"retry-after: 1" in head
        # Short requests of the same account still work, and downloads of another account.
        assert api.ask("GET", "/v1/files").status == 200
        other = Api(api.port, new_key())
        assert other.ask(
            "GET", f"/v1/files/{other.upload(bytes(2 * MiB))['id']}/content"
        ).body == bytes(2 * MiB)
        for client in unread:
            client.close()
        wait_until(lambda: budget.answers.held(mine) == 0)
        assert api.ask("GET", path).status == 200

    @pytest.mark.parametrize("size", [24 * MiB, None], ids=["a known length", "chunks"])
    def test_a_stream_holds_two_pieces_however_it_is_read(
        self, api: Api, opened: ExitStack, monkeypatch: pytest.MonkeyPatch, size: int | None
    ) -> None:
        held: set[int] = set()

        class Piece(bytes):
            def __new__(cls) -> "Piece":
                made = super().__new__(cls, MiB)
                held.add(id(made))
                return made

            def __del__(self) -> None:
                held.discard(id(self))

        made = Rendered(lambda: (Piece() for _ in range(24)), size)
        monkeypatch.setattr(content, "of", lambda file: made)
        client = begin(api, opened, "GET", f"/v1/files/{api.upload()['id']}/content")
        received, end = 0, b""
        # Each read leaves the connection at another place in a piece.
        while received <= 24 * MiB or (size is None and not end.endswith(b"\r\n0\r\n\r\n")):
            data = client.recv(20_000)
            received, end = received + len(data), (end + data)[-7:]
            # For a moment, a thread may hold a piece that it has just passed on.
            wait_until(lambda: len(held) <= 2)
        wait_until(lambda: budget.answers.held(owner(api.key)) == 0)
        wait_until(lambda: not held)

    def test_an_account_over_its_share_of_unread_answers_is_told_before_its_request_runs(
        self, api: Api, configure: Callable[..., None]
    ) -> None:
        configure(held_bytes=5 * MiB, max_inbox_bytes=MiB)
        mine = owner(api.key)
        budget.answers.add(mine, 2 * MiB)
        try:
            assert (
                api.ask("POST", "/v1/schedules", {**SCHEDULE, "inbox": {}}).error["code"]
                == "answers_limit"
            )
        finally:
            budget.answers.give_back(mine, 2 * MiB)
        assert api.ask("GET", "/v1/schedules").json["data"] == []

    def test_a_download_that_fails_at_its_first_piece_is_an_error(self, api: Api) -> None:
        file = api.upload(b"{}\n")
        id = ids.parse("file", file["id"])
        assert id is not None
        storage.delete(storage.key(id))
        answer = api.ask("GET", f"/v1/files/{file['id']}/content")
        assert (answer.status, answer.error["code"]) == (503, "service_unavailable")
        assert budget.answers.held(owner(api.key)) == 0


class TestPortions:
    """A list has the same bytes with any size of portion."""

    def whole_and_in_portions(
        self, api: Api, monkeypatch: pytest.MonkeyPatch, room: Any, path: str
    ) -> list[Any]:
        found = []
        for portion in (100, 2):
            monkeypatch.setattr(room, "PORTION", portion)
            found.append(api.ask("GET", path).body)
        assert found[0] == found[1]
        listed = json.loads(found[0])
        data: list[Any] = listed["data"]
        assert (listed["first_id"], listed["last_id"]) == (data[0]["id"], data[-1]["id"])
        return [listed["has_more"], len(data)]

    def test_files(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        for _ in range(5):
            api.upload()
        assert self.whole_and_in_portions(api, monkeypatch, files, "/v1/files") == [False, 5]
        assert self.whole_and_in_portions(
            api, monkeypatch, files, "/v1/files?limit=4&order=asc"
        ) == [True, 4]
        assert self.whole_and_in_portions(api, monkeypatch, files, "/v1/files?limit=3") == [True, 3]

    def test_batches(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        body = {
            "input_file_id": api.upload()["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        for _ in range(5):
            api.ask("POST", "/v1/batches", body)
        assert self.whole_and_in_portions(api, monkeypatch, batches, "/v1/batches?limit=4") == [
            True,
            4,
        ]
        assert self.whole_and_in_portions(api, monkeypatch, batches, "/v1/batches") == [False, 5]

    def test_schedules_and_their_runs(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        made = [schedule(api, inbox={"on_empty": "skip"}, overlap="allow") for _ in range(3)]
        assert self.whole_and_in_portions(api, monkeypatch, schedules, "/v1/schedules") == [
            False,
            3,
        ]
        for _ in range(3):
            api.ask("POST", f"/v1/schedules/{made[0]}/run")
        assert self.whole_and_in_portions(
            api, monkeypatch, schedules, f"/v1/schedules/{made[0]}/runs?limit=3"
        ) == [False, 3]


class TestConnections:
    @pytest.fixture(autouse=True)
    def _few(self, configure: Callable[..., None]) -> None:
        configure(max_connections=3)

    def test_the_one_that_rested_longest_makes_way(self, api: Api, opened: ExitStack) -> None:
        clients = []
        for _ in range(4):
            clients.append(
                opened.enter_context(socket.create_connection(("127.0.0.1", api.port), timeout=30))
            )
            clients[-1].sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            assert answered(clients[-1])[0] == 200
            # uvloop's clock has milliseconds: without a pause, two may be idle since the same one.
            time.sleep(0.005)
        assert clients[0].recv(1) == b""
        for client in clients[1:]:
            client.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            assert answered(client)[0] == 200

    def test_one_too_many_beside_requests_that_are_answered_is_503(
        self, api: Api, opened: ExitStack
    ) -> None:
        path, mine = f"/v1/schedules/{schedule(api)}/requests", owner(api.key)
        for _ in range(3):
            begin(api, opened, "POST", path, "content-length: 100", sent=b"[")
        wait_until(lambda: budget.bodies.held(mine) == 300)
        status, error, head = answered(
            opened.enter_context(socket.create_connection(("127.0.0.1", api.port), timeout=30))
        )
        assert (status, error["type"], error["code"]) == (
            503,
            "server_error",
            "service_unavailable",
        )
        assert b"retry-after: 5\r\n" in head


def test_a_long_answer_reaches_the_connection_in_slices(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "SLICE_BYTES", 100)
    for _ in range(3):
        api.upload()
    answer = api.ask("GET", "/v1/files")
    assert len(answer.body) > 300
    assert orjson.loads(answer.body)["data"]
    assert budget.answers.held(owner(api.key)) == 0


def test_too_many_requests_ahead_on_a_connection_end_it(api: Api) -> None:
    with socket.create_connection(("127.0.0.1", api.port), timeout=30) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\n\r\n" * 1_000)
        received = b""
        try:
            while part := client.recv(65_536):
                received += part
        except ConnectionResetError:
            pass
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"requests wait on this connection" in received
