"""One request as bytes on a connection, and its answer."""

import http.client
import socket
from contextlib import suppress
from typing import NamedTuple

from tests.waiting import PATIENCE


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


def exchange(port: int, sent: bytes, method: str = "GET") -> Answer:
    """Send bytes, and read the answer; a server may have closed before it has read all."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        with suppress(ConnectionError):
            connection.sendall(sent)
        response = http.client.HTTPResponse(connection, method=method)
        response.begin()
        return Answer(response.status, response.getheaders(), response.read())
