"""The listening sockets of the API, which `up` holds, and the address that clients reach it at."""

import errno
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Self

from xalen_batch.errors import ConfigError

# Ports behind the preferred one that are tried before any free one.
NEIGHBOURS = 50
# As uvicorn's own sockets have it.
BACKLOG = 2048
# The system choosing a port for one address of a host may hit a taken one of another address.
ATTEMPTS = 10
# Wildcard addresses, and the loopback address that reaches a server on them.
ANY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True)
class Listener:
    """Sockets that listen on one port: one for each address of `host`."""

    host: str
    port: int
    sockets: Sequence[socket.socket]

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The sockets' file descriptors, for a child process."""
        return tuple(each.fileno() for each in self.sockets)

    def close(self) -> None:
        """Close this process's copies; those of a child still listen."""
        for each in self.sockets:
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def listen(host: str, port: int, *, is_asked: bool) -> Listener:
    """Listen on a port, or on the next free one; ConfigError if that was asked for and is taken.

    The sockets listen, and are not only bound: Linux lets another process with SO_REUSEADDR bind
    the port of a socket that does not listen yet, and then listen first. Clients that connect
    before the API accepts wait in the backlog.
    """
    try:
        return _listen(host, port)
    except OSError as error:
        if is_asked:
            raise ConfigError(_reason(host, port, error)) from error
    for near in range(port + 1, min(port + NEIGHBOURS, 65536)):
        with suppress(OSError):
            return _listen(host, near)
    try:
        return _listen(host, 0)
    except OSError as error:
        raise ConfigError(_reason(host, 0, error)) from error


def address(host: str, port: int) -> str:
    """The URL at which this machine reaches a server on that host: `http://127.0.0.1:8080`."""
    reached = ANY.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def base_url(host: str, port: int) -> str:
    """The `base_url` of an OpenAI client."""
    return f"{address(host, port)}/v1"


def _reason(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is taken. Choose another with --port, or leave --port out and a"
            " free one is found."
        )
    return (
        f"The API cannot listen on port {port} of {host}: {error.strerror}. Choose another with"
        " --host or --port."
    )


def _listen(host: str, port: int) -> Listener:
    """OSError if the port cannot be used on an address of the host; 0 takes any free port."""
    for _ in range(ATTEMPTS - 1 if port == 0 else 0):
        with suppress(OSError):
            return _listen_on_all(host, port)
    return _listen_on_all(host, port)


def _listen_on_all(host: str, port: int) -> Listener:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    with ExitStack() as opened:
        for index, (family, _, _, _, where) in enumerate(found):
            try:
                # With port 0, the first address chooses the port of all.
                sockets.append(opened.enter_context(_open(family, (where[0], port, *where[2:]))))
            except OSError as error:
                # `localhost` has an IPv6 address on machines without IPv6.
                is_last = index == len(found) - 1
                if not _is_absent(error) or (is_last and not sockets):
                    raise
            else:
                port = sockets[0].getsockname()[1]
        opened.pop_all()
    return Listener(host, port, sockets)


def _open(family: int, where: tuple[object, ...]) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Connections of an earlier run in TIME_WAIT do not block the port.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(where)
        opened.listen(BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened


def _is_absent(error: OSError) -> bool:
    return error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
