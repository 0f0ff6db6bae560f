"""Strangers send bodies without a key, a tenant sends some to an inbox that does not exist and
stalls uploads: the API keeps few bytes.
"""

import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from http.client import HTTPConnection

from tests.attack.system import MB, Figure, Size, System, median_seconds

SETTINGS: Mapping[str, object] = {}
CATALOG = ""

MiB = 1024 * 1024
FORM = "multipart/form-data; boundary=edge"
PART = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
NOWHERE = "/v1/schedules/sched_00000000000000000000000000/requests"


def begin(
    system: System, path: str, length: int, key: str = "", kind: str = "application/json"
) -> socket.socket:
    """A connection with a request's head whose body is still to come."""
    client = socket.create_connection(("127.0.0.1", system.port), timeout=60)
    named = f"authorization: Bearer {key}\r\n" if key else ""
    client.sendall(
        f"POST {path} HTTP/1.1\r\nhost: x\r\n{named}content-type: {kind}\r\ncontent-length:"
        f" {length}\r\n\r\n".encode()
    )
    return client


def fill(clients: list[socket.socket], length: int) -> None:
    """Send each body except its last byte, for as long as the server reads it."""
    block = b" " * MiB
    for client in clients:
        left = length - 1
        # The server may reset a refused connection while its body is still being sent.
        with suppress(OSError):
            while left:
                left -= client.send(block[:left])


def pipelined(system: System, clients: int) -> list[socket.socket]:
    """Connections on each of which thousands of requests were sent at once."""
    opened = []
    for _ in range(clients):
        client = socket.create_connection(("127.0.0.1", system.port), timeout=60)
        opened.append(client)
        client.setblocking(False)
        with suppress(OSError):
            client.sendall(b"GET /docs HTTP/1.1\r\n\r\n" * 60_000)
    return opened


def attack(system: System, size: Size) -> Iterator[Figure]:
    key = system.new_account("neighbour")

    def short() -> None:
        connection = HTTPConnection("127.0.0.1", system.port, timeout=60)
        connection.request("GET", "/v1/batches", headers={"authorization": f"Bearer {key}"})
        if connection.getresponse().status != 200:
            raise RuntimeError("the neighbour was refused")
        connection.close()

    alone = median_seconds(short, 15)
    before = system.settled("api")
    connections, bodies, pipes = (100, 15, 10) if size is Size.SMALL else (200, 30, 20)
    with ExitStack() as opened:
        clients = [
            opened.enter_context(begin(system, "/v1/batches", MiB)) for _ in range(connections)
        ]
        fill(clients, MiB)
        yield Figure(
            f"API memory grown by {connections} bodies of 1 MiB without a key, MB",
            (system.settled("api") - before) / MB,
            60,
        )
        yield Figure(
            "another account's GET beside them, times its time alone",
            median_seconds(short, 15) / alone,
            size.times(3.0),
        )
    with ExitStack() as opened:
        clients = [
            opened.enter_context(begin(system, NOWHERE, 16 * MiB, system.test_key))
            for _ in range(bodies)
        ]
        fill(clients, 16 * MiB)
        grown = (system.settled("api") - before) / MB
        yield Figure(
            f"API memory grown by {bodies} bodies of 16 MiB for an inbox that does not exist, MB",
            grown,
            60,
        )
    with ExitStack() as opened:
        clients = [
            opened.enter_context(begin(system, "/v1/files", 4 * MiB, system.test_key, FORM))
            for _ in range(connections)
        ]
        for client in clients:
            with suppress(OSError):
                client.sendall(PART)
        fill(clients, 7 * MiB // 2)
        grown = (system.settled("api") - before) / MB
        yield Figure(
            f"API memory grown by {connections} uploads that stall before 4 MiB, MB", grown, 120
        )
    system.forget_peak("api")
    resting = system.rss("api")
    with ExitStack() as opened:
        for client in pipelined(system, pipes):
            opened.enter_context(client)
        system.settled("api")
        grown = (system.peak("api") - resting) / MB
        yield Figure(
            f"API memory grown at most by {pipes} connections full of pipelined requests, MB",
            grown,
            60,
        )
    yield Figure(
        "API memory grown after all have closed, MB", (system.settled("api") - before) / MB, 60
    )
