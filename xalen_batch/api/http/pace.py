"""Timeouts against slow clients (Slowloris): without them a request would hold its connection, and
an upload its file, for ever.

`BodyPace` bounds bodies. `protocol.py` applies CLIENT_TIMEOUT to heads and to unread answers.
"""

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Seconds in which a client has to send a whole head, or LEAST_BYTES of a body, or to read some
# bytes of an answer.
CLIENT_TIMEOUT = 60.0
LEAST_BYTES = 16 * 1024


class BodyPace:
    """Refuses a body with fewer than LEAST_BYTES in CLIENT_TIMEOUT seconds of waiting for it.

    Only the time that `receive` waits for the client counts, not that of the route.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        waited, received, is_whole = 0.0, 0, False

        async def receive_in_time() -> Message:
            nonlocal waited, received, is_whole
            while not is_whole:
                begun = time.monotonic()
                try:
                    async with asyncio.timeout(CLIENT_TIMEOUT - waited):
                        message = await receive()
                except TimeoutError:
                    if received < LEAST_BYTES:
                        # The framework replaces other exceptions by its own error of broken bodies.
                        raise HTTPException(
                            408,
                            f"The body came too slowly: {received:,} bytes in {CLIENT_TIMEOUT:g} s."
                            f" Send at least {LEAST_BYTES:,} in that time.",
                        ) from None
                    waited, received = 0.0, 0
                else:
                    waited = min(waited + time.monotonic() - begun, CLIENT_TIMEOUT)
                    received += len(message.get("body", b""))
                    is_whole = not message.get("more_body", False)
                    return message
            # After the body, `receive` only waits for the client to disconnect.
            return await receive()

        await self.app(scope, receive_in_time, send)
