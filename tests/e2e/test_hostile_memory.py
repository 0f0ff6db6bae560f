"""The memory of a real API process does not grow with hostile requests, and it still answers."""

import http.client
import socket
from collections.abc import Iterator
from pathlib import Path

from tests import factories
from tests.conftest import Stores
from tests.e2e import processes
from tests.hostile.requests import END, FORM, MiB, part
from tests.integration.exchanges import exchange
from xalen_batch import db

GROWTH = 64 * MiB
GIGABYTE = 1024 * MiB
BLOCK = b"x" * MiB


def peak(pid: int) -> int:
    line = next(
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )
    return int(line.split()[1]) * 1024


def a_line_of_a_gigabyte() -> Iterator[bytes]:
    yield part("purpose", b"batch") + part("file", filename=b"a.jsonl")[:-2] + b'{"custom_id":"'
    for _ in range(GIGABYTE // MiB):
        yield BLOCK
    yield b'"}\r\n' + END


def send(
    port: int, key: str, blocks: Iterator[bytes], *, headers: dict[str, str]
) -> tuple[int, int]:
    """The status of the answer, and the bytes that the server accepted before it refused."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.putrequest("POST", "/v1/files")
    for name, value in {**dict(FORM), "authorization": f"Bearer {key}", **headers}.items():  # type: ignore[arg-type]
        connection.putheader(name, str(value))
    connection.endheaders()
    sent = 0
    try:
        for block in blocks:
            data = block if "content-length" in headers else b"%x\r\n%b\r\n" % (len(block), block)
            connection.sock.sendall(data)
            sent += len(block)
            connection.sock.settimeout(0.001)
            try:
                if connection.sock.recv(1, socket.MSG_PEEK):
                    break
            except TimeoutError:
                pass
            finally:
                connection.sock.settimeout(120)
    except ConnectionError:
        pass
    response = connection.getresponse()
    status = response.status
    connection.close()
    return status, sent


def test_the_api_does_not_grow(stores: Stores, database: str, tmp_path: Path) -> None:
    with db.transaction() as session:
        key = factories.key(session)
    port, log = processes.free_port(), tmp_path / "api.log"
    env = processes.environment(**stores._asdict())
    with processes.command("api", "--port", str(port), log=log, env=env, executed=True) as process:
        processes.wait_until(
            lambda: processes.answers(f"http://127.0.0.1:{port}/readyz"),
            timeout=processes.START_TIMEOUT,
            process=process,
            log=log,
        )
        head = f"host: x\r\nauthorization: Bearer {key}\r\n".encode()
        # Warm up its memory: threads, connections, an upload's buffers.
        assert exchange(port, b"GET /v1/files HTTP/1.1\r\n" + head + b"\r\n").status == 200
        before = peak(process.pid)
        whole = {"content-length": str(GIGABYTE + 1000)}
        status, sent = send(port, key, a_line_of_a_gigabyte(), headers=whole)
        assert (status, sent < 16 * MiB) == (413, True), sent
        status, sent = send(
            port, key, a_line_of_a_gigabyte(), headers={"transfer-encoding": "chunked"}
        )
        assert (status, sent < 260 * MiB) == (413, True), sent
        # A gzip bomb, which the API never inflates; nesting; an address, a header and
        # trailers without an end.
        for request, expected in {
            b"POST /v1/files HTTP/1.1\r\n"
            + head
            + b"content-encoding: gzip\r\ncontent-type: multipart/form-data; boundary=edge\r\ncontent-length: 5\r\n\r\n\x1f\x8b\x08\0\0": (
                415
            ),
            b"POST /v1/batches HTTP/1.1\r\n"
            + head
            + b"content-type: application/json\r\ncontent-length: 1000000\r\n\r\n"
            + b"[" * 1_000_000: 400,
            b"GET /v1/files?x=" + b"y" * 64 * MiB + b" HTTP/1.1\r\n" + head + b"\r\n": 431,
            b"GET /v1/files HTTP/1.1\r\n" + head + b"x: " + b"y" * 64 * MiB + b"\r\n\r\n": 431,
            b"POST /v1/batches HTTP/1.1\r\n"
            + head
            + b"transfer-encoding: chunked\r\n\r\n0\r\n"
            + b"x: y\r\n" * 8 * MiB
            + b"\r\n": 431,
        }.items():
            assert exchange(port, request).status == expected
        assert peak(process.pid) - before < GROWTH
        assert exchange(port, b"GET /v1/files HTTP/1.1\r\n" + head + b"\r\n").status == 200
    assert "Traceback" not in log.read_text("utf-8")
