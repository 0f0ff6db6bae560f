"""Which port the API gets, and the address it is reached at."""

import socket

from xalen_batch.errors import ConfigError

NEIGHBOURS = 50
ANY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def choose(host: str, port: int, *, is_asked: bool) -> int:
    """The port, or the next free one. ConfigError if one that was asked for by name is taken."""
    if port == 0 or is_free(host, port):
        return port or _any(host)
    if is_asked:
        raise ConfigError(
            f"Port {port} on {host} is taken. Choose another with --port, or leave --port out and a"
            " free one is found."
        )
    return next(
        (near for near in range(port + 1, min(port + NEIGHBOURS, 65536)) if is_free(host, near)),
        None,
    ) or _any(host)


def is_free(host: str, port: int) -> bool:
    try:
        _bind(host, port)
    except OSError:
        return False
    return True


def address(host: str, port: int) -> str:
    """Where this machine reaches a server that listens on that host: `http://127.0.0.1:8080`."""
    reached = ANY.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def base_url(host: str, port: int) -> str:
    """What an OpenAI client takes as `base_url`."""
    return f"{address(host, port)}/v1"


def _any(host: str) -> int:
    return _bind(host, 0)


def _bind(host: str, port: int) -> int:
    family, kind, _, _, where = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind) as probe:
        # As the server will: connections of an earlier run that are still closing are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(where)
        probe.listen()
        return int(probe.getsockname()[1])
