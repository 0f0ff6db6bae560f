"""A client that stalls loses its connection or its upload after CLIENT_TIMEOUT."""

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

from tests.integration.conftest import Api, multipart
from tests.waiting import PATIENCE, wait_until
from xalen_batch import files
from xalen_batch.api.http import pace
from xalen_batch.config import settings

pytestmark = pytest.mark.timing

KIND, BODY = multipart(("purpose", None, b"batch"), ("file", "a.jsonl", bytes(200_000)))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "CLIENT_TIMEOUT", 1.0)


def connect(api: Api) -> socket.socket:
    return socket.create_connection(("127.0.0.1", api.port), timeout=PATIENCE)


def head(api: Api, path: str = "/v1/files", kind: str = KIND, length: int = len(BODY)) -> bytes:
    named = (
        f"authorization: Bearer {api.key}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n"
    )
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{named}\r\n".encode()


def rest(client: socket.socket) -> bytes:
    """All bytes until the connection ends."""
    found = b""
    try:
        while part := client.recv(65_536):
            found += part
    except ConnectionResetError:
        pass
    return found


def drip(client: socket.socket, content: bytes, size: int = 1) -> bytes:
    """Send a byte from time to time, until an answer arrives or the connection is closed."""
    client.settimeout(0.05)
    for start in range(0, len(content), size):
        try:
            client.sendall(content[start : start + size])
            return client.recv(65_536)
        except TimeoutError:
            continue
        except ConnectionError:
            return b""
    raise AssertionError("neither an answer nor an end")


def refused(answer: bytes) -> str:
    """The message of a 408 after which the connection was closed."""
    top, _, body = answer.partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in top.lower()
    error = json.loads(body)["error"]
    assert (error["type"], error["code"], error["param"]) == (
        "invalid_request_error",
        "request_timeout",
        None,
    )
    message: str = error["message"]
    return message


def left() -> list[Path]:
    return [
        path
        for path in Path(urlparse(settings().storage).path, "input").glob("**/*")
        if path.is_file()
    ]


def test_an_upload_that_stalls_is_given_up_and_leaves_nothing(api: Api) -> None:
    before = set(left())
    with connect(api) as client:
        client.sendall(head(api) + BODY[:10_000])
        assert "10,000 bytes in 1 s" in refused(rest(client))
    assert set(left()) == before


def test_a_byte_now_and_then_is_no_upload(api: Api) -> None:
    with connect(api) as client:
        client.sendall(head(api))
        answer = drip(client, BODY[:200])
        client.settimeout(30)
        refused(answer + rest(client))


def test_a_slow_upload_that_goes_on_is_taken(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "LEAST_BYTES", 10)
    begun = time.monotonic()
    with connect(api) as client:
        client.sendall(head(api))
        step = len(BODY) // 12 + 1
        for start in range(0, len(BODY), step):
            client.sendall(BODY[start : start + step])
            time.sleep(0.1)
        assert time.monotonic() - begun > pace.CLIENT_TIMEOUT
        assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/chat/completions"])
def test_a_json_body_that_stalls_is_given_up_too(api: Api, path: str) -> None:
    with connect(api) as client:
        client.sendall(head(api, path, "application/json", 1_000) + b'{"model": ')
        refused(rest(client))


def test_an_answer_that_takes_longer_than_a_body_may_is_waited_for(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = files.create

    def create_slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(1.2 * pace.CLIENT_TIMEOUT)
        return create(*args, **kwargs)

    monkeypatch.setattr(files, "create", create_slowly)
    assert api.ask("POST", "/v1/files", BODY, headers={"content-type": KIND}).status == 200


@pytest.mark.parametrize(
    "sent",
    [b"GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: ", b"GET /livez HTTP/1.1\r\nhost: x\r\n", b"G"],
)
def test_headers_that_do_not_come_to_an_end_are_given_up(api: Api, sent: bytes) -> None:
    with connect(api) as client:
        client.sendall(sent)
        assert "headers did not come within 1 s" in refused(rest(client))


def test_headers_that_drip_are_given_up(api: Api) -> None:
    with connect(api) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nx-slow: ")
        refused(drip(client, b"x" * 400))


def test_a_connection_that_says_nothing_is_closed_without_a_word(api: Api) -> None:
    with connect(api) as client:
        assert rest(client) == b""


def test_empty_lines_are_no_request(api: Api) -> None:
    with connect(api) as client:
        assert drip(client, b"\r\n" * 400, 2) == b""


def test_a_connection_may_rest_between_requests_and_its_next_one_has_the_same_time(
    api: Api,
) -> None:
    request = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
    with connect(api) as client:
        for _ in range(2):
            client.sendall(request)
            answer = b""
            while not answer.endswith(b"}"):
                answer += client.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 200 ")
            time.sleep(1.2 * pace.CLIENT_TIMEOUT)
        client.sendall(request[:-2])
        refused(rest(client))


def test_a_body_that_goes_on_after_its_answer_keeps_nothing(api: Api) -> None:
    with connect(api) as client:
        client.sendall(head(api).replace(b"Bearer", b"Nobody"))
        assert client.recv(65_536).startswith(b"HTTP/1.1 401 ")
        # Parts of the answer may come first; then comes the end.
        while drip(client, b"x" * 400):
            pass


# More than the kernel's buffers hold for a client.
ANSWER = 24 * 1024 * 1024


@pytest.fixture
def reader(api: Api) -> Iterator[socket.socket]:
    """A client that has requested a large file, with a small receive buffer."""
    file = api.upload(bytes(ANSWER))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        client.settimeout(30)
        client.connect(("127.0.0.1", api.port))
        request = (
            f"GET /v1/files/{file['id']}/content HTTP/1.1\r\nhost: x\r\nauthorization: Bearer"
            f" {api.key}\r\n\r\n"
        )
        client.sendall(request.encode())
        yield client


def test_a_download_that_nobody_reads_is_given_up(api: Api, reader: socket.socket) -> None:
    port = reader.getsockname()[1]
    wait_until(lambda: port in served(api))
    # The API's socket is closed, even if the kernel still holds bytes for the client.
    wait_until(lambda: port not in served(api))
    found = rest(reader)
    assert found.startswith(b"HTTP/1.1 200 ")
    assert f"content-length: {ANSWER}\r\n".encode() in found
    assert len(found) < ANSWER


def test_a_slow_download_that_goes_on_is_served_to_its_end(reader: socket.socket) -> None:
    begun, read = time.monotonic(), 0
    while read < ANSWER:
        part = reader.recv(64 * 1024)
        assert part
        read += len(part)
        if time.monotonic() - begun < 3 * pace.CLIENT_TIMEOUT:
            time.sleep(pace.CLIENT_TIMEOUT / 5)
    assert time.monotonic() - begun > 3 * pace.CLIENT_TIMEOUT


def test_the_last_of_a_download_that_nobody_reads_is_given_up(
    api: Api, reader: socket.socket
) -> None:
    read = 0
    while read < ANSWER - 512 * 1024:
        read += len(reader.recv(256 * 1024))
    port = reader.getsockname()[1]
    # The API has sent the whole answer; its end is in the kernel's buffer.
    wait_until(lambda: port not in queued(api))
    assert read < ANSWER


def served(api: Api) -> set[int]:
    """Ports of the clients with a connection to the API in this process."""
    own = {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    }
    return {port for port, _, inode in connections(api) if f"socket:[{inode}]" in own}


def queued(api: Api) -> set[int]:
    """Ports of the clients for which the kernel holds bytes of the API, in any process."""
    return {port for port, waiting, _ in connections(api) if waiting}


def connections(api: Api) -> Iterator[tuple[int, int, str]]:
    """The API's end of each connection: the client's port, the unsent or unacknowledged bytes, and
    the inode.
    """
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_, inode = line.split()[:10]
        if int(local.rpartition(":")[2], 16) == api.port:
            yield int(remote.rpartition(":")[2], 16), int(queues.partition(":")[0], 16), inode
