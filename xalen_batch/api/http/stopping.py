"""How the API stops: every request that a client has sent, or sends before it can know, is
answered.
"""

import asyncio
import socket
from asyncio import Event
from contextlib import suppress

import uvicorn

from xalen_batch.config import settings


class GracefulServer(uvicorn.Server):
    """Takes the connections of the listen backlog before it stops listening.

    uvicorn stops first: the kernel then resets what it holds there, and a proxy that has sent a
    POST may not send it again.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stopping: Event = self.lifespan.state["stopping"]
        stopping.set()
        await asyncio.sleep(settings().shutdown_delay)
        # Copies of the descriptors go on listening when the event loop's are closed.
        copies = [listening.dup() for server in self.servers for listening in server.sockets]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in [connection for copy in copies for connection in _drain(copy)]:
            await loop.connect_accepted_socket(self._protocol, connection)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


def _drain(listening: socket.socket) -> list[socket.socket]:
    """Accept every connection in the listen backlog, then close the socket.

    The kernel resets a connection that arrives in between.
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
