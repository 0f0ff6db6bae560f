"""Clients that send a request too slowly to be meant: they would keep a connection, and an upload,
for ever.

Heads, and the reading of answers, have the same patience where they are parsed and written
(`protocol.py`).
"""

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A request's head has to be there within so many seconds, and of its body so many bytes in each
# such time; and some of its answer taken.
PATIENCE = 60.0
LEAST_BYTES = 16 * 1024


class BodyPace:
    """Refuses a body that stalls.

    What counts is the time spent waiting for the client, never ours.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        waited, came, is_whole = 0.0, 0, False

        async def receive_in_time() -> Message:
            nonlocal waited, came, is_whole
            while not is_whole:
                begun = time.monotonic()
                try:
                    async with asyncio.timeout(PATIENCE - waited):
                        message = await receive()
                except TimeoutError:
                    if came < LEAST_BYTES:
                        # An HTTPException passes through the framework's own handling of broken
                        # bodies.
                        raise HTTPException(
                            408,
                            f"The body came too slowly: {came:,} bytes in {PATIENCE:g} s. Send at"
                            f" least {LEAST_BYTES:,} in that time.",
                        ) from None
                    waited, came = 0.0, 0
                else:
                    waited = min(waited + time.monotonic() - begun, PATIENCE)
                    came += len(message.get("body", b""))
                    is_whole = not message.get("more_body", False)
                    return message
            # From here on it is only asked whether the client is still there.
            return await receive()

        await self.app(scope, receive_in_time, send)
