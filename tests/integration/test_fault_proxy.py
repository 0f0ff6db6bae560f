"""The faults that the proxy promises, seen from both ends of a connection through it."""

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault_proxy import FaultProxy


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        try:
            while data := self.request.recv(65536):
                self.request.sendall(data)
        except ConnectionError:
            return


@pytest.fixture
def echo() -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def proxy(echo: int) -> Iterator[FaultProxy]:
    with FaultProxy(("127.0.0.1", echo)) as proxy:
        yield proxy


def connect(proxy: FaultProxy, timeout: float = 20.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=timeout)


def said(client: socket.socket, data: bytes) -> bytes:
    """The bytes of the answer, until it is complete or the connection ends."""
    client.sendall(data)
    found = b""
    while len(found) < len(data) and (part := client.recv(65536)):
        found += part
    return found


def is_reset(proxy: FaultProxy) -> bool:
    """Whether a new connection is reset, at its first byte at the latest."""
    try:
        with connect(proxy) as client:
            said(client, b"a")
    except ConnectionError:
        return True
    return False


def test_without_a_fault_everything_passes(proxy: FaultProxy) -> None:
    data = bytes(range(256)) * 2_000
    with connect(proxy) as client:
        assert said(client, data) == data
        assert proxy.open == 1
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert proxy.accepted == 1


def test_a_reset_ends_what_is_open_and_what_opens_until_it_heals(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        assert said(client, b"a") == b"a"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert is_reset(proxy)
    proxy.heal()
    assert not is_reset(proxy)


def test_connections_can_be_broken_once(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        assert said(client, b"a") == b"a"
        proxy.break_connections()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with connect(proxy) as client:
        assert said(client, b"b") == b"b"


def test_refused_is_refused_and_the_port_is_the_same_afterwards(proxy: FaultProxy) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.heal()
    with connect(proxy) as client:
        assert said(client, b"a") == b"a"


def test_a_black_hole_accepts_and_says_nothing_and_what_it_kept_arrives_when_it_heals(
    proxy: FaultProxy,
) -> None:
    with connect(proxy) as old:
        assert said(old, b"a") == b"a"
        proxy.black_hole()
        with connect(proxy) as new:
            for client in (old, new):
                client.settimeout(0.3)
                client.sendall(b"b")
                with pytest.raises(TimeoutError):
                    client.recv(1)
            proxy.heal()
            for client in (old, new):
                client.settimeout(20)
                assert client.recv(1) == b"b"


def test_a_delay_holds_each_way(proxy: FaultProxy) -> None:
    proxy.delay(0.2)
    with connect(proxy) as client:
        begun = time.monotonic()
        assert said(client, b"a") == b"a"
        assert time.monotonic() - begun >= 0.4


def test_slices_of_a_byte_arrive_whole_and_in_order(proxy: FaultProxy) -> None:
    proxy.slices(1)
    data = bytes(range(256))
    with connect(proxy) as client:
        # A reader that gets no time finds all slices at once, now and then.
        for _ in range(20):
            client.sendall(data)
            parts = []
            while sum(map(len, parts)) < len(data):
                parts.append(client.recv(65536))
            assert b"".join(parts) == data
            if len(parts) > 1:
                break
        assert len(parts) > 1


def test_a_connection_is_cut_after_so_many_bytes_from_the_fault_on(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        assert said(client, b"before") == b"before"
        proxy.cut_after(4)
        assert said(client, b"abcdef") == b"abcd"
    with connect(proxy) as client:
        assert said(client, b"abcdef") == b"abcd"


def test_it_forwards_to_a_unix_socket_too(tmp_path: Path) -> None:
    with socketserver.ThreadingUnixStreamServer(str(tmp_path / "s"), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with FaultProxy(tmp_path / "s") as proxy, connect(proxy) as client:
            assert said(client, b"a") == b"a"
        server.shutdown()


def test_a_target_that_is_not_there_is_a_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        gone = taken.getsockname()[1]
    with FaultProxy(("127.0.0.1", gone)) as proxy:
        assert is_reset(proxy)
