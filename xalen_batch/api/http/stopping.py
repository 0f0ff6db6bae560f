"""Graceful stop of the API: each request is answered that a client sent before it could know of the
stop.
"""

import asyncio
import socket
from asyncio import Event
from collections.abc import Sequence
from contextlib import suppress

import uvicorn

from xalen_batch.config import settings


class GracefulServer(uvicorn.Server):
    """A uvicorn server that accepts the connections in the listen backlog before it closes.

    uvicorn itself closes the socket first. The kernel then resets the connections in the backlog,
    and a proxy that has sent a POST may not repeat it.

    `told`: signals to stop that arrive before uvicorn listens to them.
    """

    def __init__(self, config: uvicorn.Config, told: Sequence[int]) -> None:
        super().__init__(config)
        self._told = told

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # From here on uvicorn sees the signals itself. It starts, and shuts down at once.
        self.should_exit = self.should_exit or bool(self._told)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stopping: Event = self.lifespan.state["stopping"]
        stopping.set()
        await asyncio.sleep(settings().shutdown_delay)
        # Duplicated descriptors still listen after the event loop has closed its own.
        copies = [listening.dup() for server in self.servers for listening in server.sockets]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        # Drain all sockets before the first await: connections to a closed one are reset.
        accepted = [connection for copy in copies for connection in _drain(copy)]
        for connection in accepted:
            await loop.connect_accepted_socket(self._protocol, connection)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


def _drain(listening: socket.socket) -> list[socket.socket]:
    """Accept all connections in the listen backlog, then close the socket.

    The kernel resets a connection that arrives between the last accept and the close.
    """
    accepted = []
    with listening:
        listening.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                accepted.append(listening.accept()[0])
    for connection in accepted:
        connection.setblocking(False)
    return accepted
