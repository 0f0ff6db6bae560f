"""The port that `up` chooses stays its own, and the next free one replaces a taken one."""

import errno
import socket
import subprocess
import sys
from contextlib import closing

import pytest

from xalen_batch.errors import ConfigError
from xalen_batch.standalone import ports

LOOPBACK = "127.0.0.1"
# Servers set SO_REUSEADDR, as `create_server` does.
TAKE = "import socket, sys; socket.create_server(('127.0.0.1', int(sys.argv[1])))"


def test_another_process_cannot_take_the_port() -> None:
    with ports.listen(LOOPBACK, 0, is_asked=False) as listener:
        taking = [sys.executable, "-c", TAKE, str(listener.port)]
        refused = subprocess.run(taking, capture_output=True, text=True)
    assert "Address already in use" in refused.stderr
    assert subprocess.run(taking, capture_output=True).returncode == 0


def test_a_client_that_is_early_waits_for_a_child_that_inherits_the_sockets() -> None:
    accept = (
        "import socket, sys; socket.socket(fileno=int(sys.argv[1])).accept()[0].sendall(b'hello')"
    )
    with (
        ports.listen(LOOPBACK, 0, is_asked=False) as listener,
        socket.create_connection((LOOPBACK, listener.port), 30) as client,
    ):
        (fd,) = listener.descriptors
        subprocess.run([sys.executable, "-c", accept, str(fd)], pass_fds=[fd], check=True)
        assert client.recv(5) == b"hello"


def test_the_next_free_port_replaces_a_taken_one_unless_it_was_asked_for() -> None:
    with ports.listen(LOOPBACK, 0, is_asked=False) as first:
        with ports.listen(LOOPBACK, first.port, is_asked=False) as second:
            assert second.port != first.port
        with pytest.raises(ConfigError, match=f"Port {first.port} on {LOOPBACK} is taken"):
            ports.listen(LOOPBACK, first.port, is_asked=True)


def test_a_host_with_several_addresses_listens_on_the_same_port_of_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 192.0.2.1 is no address of any machine: as ::1 on one without IPv6.
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))
        for address in (LOOPBACK, "192.0.2.1", "127.0.0.2")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with ports.listen("several", 0, is_asked=False) as listener:
        addresses = [each.getsockname() for each in listener.sockets]
    assert addresses == [(LOOPBACK, listener.port), ("127.0.0.2", listener.port)]


def test_a_port_that_is_taken_on_one_address_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server((LOOPBACK, 0))) as server:
        port = server.getsockname()[1]
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("127.0.0.2", LOOPBACK)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with pytest.raises(OSError, match="in use") as caught:
            ports._listen("several", port)
        assert caught.value.errno == errno.EADDRINUSE
        # The socket of the first address is closed again.
        socket.create_server(("127.0.0.2", port)).close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_a_host_of_another_machine_is_a_clear_error(host: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on port 0 of {host}: "):
        ports.listen(host, 0, is_asked=True)
