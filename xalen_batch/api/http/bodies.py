"""Request bodies: their bytes are read only after the caller is admitted, and count in a budget."""

from collections.abc import Callable, Mapping

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xalen_batch.api import deps, errors
from xalen_batch.api.http import budget
from xalen_batch.errors import XalenError


class Bodies:
    """Admits the caller of a request when its body is first read, so that no route can read the
    body of a caller without rights.

    Refuses compressed bodies, which could grow, and bodies of more bytes than `most(method, path)`.
    If that is None, the route streams the body and holds none of it. Otherwise the bytes count in
    the account's budget until the answer has left: the declared content-length at once, a body
    without one as it arrives.
    """

    def __init__(self, app: ASGIApp, *, most: Callable[[str, str], int | None]) -> None:
        self.app = app
        self.most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        if "transfer-encoding" not in headers and headers.get("content-length", "0") == "0":
            await self.app(scope, receive, send)
            return
        body = _Body(scope, receive, headers, self.most(scope["method"], scope["path"]))
        try:
            await self.app(scope, body.receive, send)
        finally:
            body.release()


class _Body:
    """One request's body; used by the event loop thread.

    It raises HTTPException, which the framework does not replace by its own error of broken bodies.
    """

    def __init__(
        self, scope: Scope, receive: Receive, headers: Mapping[str, str], most: int | None
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._headers = headers
        self._most = most
        self._is_admitted = False
        self._received = 0
        self._held = 0

    async def receive(self) -> Message:
        if not self._is_admitted:
            await self._admit()
            self._is_admitted = True
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self._hold(self._received)
        return message

    def release(self) -> None:
        budget.bodies.give_back(deps.caller_of(self._scope), self._held)

    async def _admit(self) -> None:
        request = Request(self._scope)
        if deps.caller_of(self._scope) is None:
            try:
                error = await run_in_threadpool(deps.refusal, request)
            except errors.EXPECTED as away:
                error = errors.translate(request, away)
            if error is not None:
                raise errors.BodyRefused(error)
        encoding = self._headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise HTTPException(415, f"Content-Encoding {encoding[:40]!r} is not supported.")
        self._hold(int(self._headers.get("content-length", "0")))

    def _hold(self, size: int) -> None:
        if self._most is None or size <= self._held:
            return
        if size > self._most:
            raise HTTPException(
                413,
                f"The request body has more than {self._most:,} bytes, the most for this endpoint.",
            )
        try:
            budget.bodies.take(deps.caller_of(self._scope), size - self._held)
        except XalenError as error:
            raise errors.BodyRefused(error) from None
        self._held = size
