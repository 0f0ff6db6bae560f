"""The API's client. Retries what is safe to repeat, streams both ways, and stops at once on Ctrl-C.

pyreqwest's asynchronous client runs on a loop of our own: its synchronous one holds Ctrl-C back
until the request has ended, and then may abort the process. Nothing outside this file is async.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from pyreqwest.client import Client as HttpClient
from pyreqwest.client import ClientBuilder
from pyreqwest.exceptions import PyreqwestError
from pyreqwest.multipart import FormBuilder, PartBuilder
from pyreqwest.request import RequestBuilder
from pyreqwest.response import Response

from xalen_batch.cli.connection import Connection, find
from xalen_batch.cli.failures import ApiError, Failed, Unreachable
from xalen_batch.cli.progress import Moved

T = TypeVar("T")
Json = dict[str, Any]
Headers = Mapping[str, str]

CHUNK = 256 * 1024
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
LONGEST_PAUSE = 120.0
TIMEOUT = timedelta(seconds=60)
READ_TIMEOUT = 60.0
# Only a floor under a connection that hangs for ever; TCP notices a dead one in a minute.
UPLOAD_TIMEOUT = timedelta(hours=2)
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Client:
    """`with Client(connection) as client:`; every method raises ApiError or Unreachable."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._has_reached = False

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        self._http = self._runner.run(_open(self.connection))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._runner.run(self._http.close())
        self._runner.close()

    def get(self, path: str, **query: str | int | None) -> Json:
        """A JSON object."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._retried(lambda: self._json(self._http.get(self._url(path)).query(given).timeout(TIMEOUT)))

    def post(self, path: str, body: Json | None = None) -> Json:
        """A JSON object. Its Idempotency-Key makes a repeated POST harmless."""
        key = uuid4().hex

        def send() -> Json:
            request = self._http.post(self._url(path)).header("Idempotency-Key", key).timeout(TIMEOUT)
            return self._json(request if body is None else request.body_json(body))

        return self._retried(send)

    def upload(self, path: Path, filename: str, moved: Moved) -> Json:
        """Send a file as batch input, in constant memory."""
        key, size = uuid4().hex, path.stat().st_size

        def send() -> Json:
            part = PartBuilder.from_stream_with_length(_chunks(path, size, moved), size)
            form = FormBuilder().text("purpose", "batch").part("file", part.file_name(filename).mime("application/octet-stream"))
            return self._json(self._http.post(self._url("/files")).header("Idempotency-Key", key).multipart(form).timeout(UPLOAD_TIMEOUT))

        return self._retried(send)

    def download(self, path: str, write: Callable[[bytes], object], moved: Moved, *, is_fixed: bool) -> Headers:
        """Pass a body on piece by piece; the answer's headers, in lower case.

        `is_fixed`: the body does not change, so after a broken connection it goes on where it was.
        """
        received = 0

        def receive() -> Headers:
            nonlocal received
            with self._streamed(path) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                size, seen = _length(headers), 0
                while (chunk := self._run(_read(response))) is not None:
                    fresh = chunk[max(received - seen, 0) :]
                    seen += len(chunk)
                    write(fresh)
                    received = max(received, seen)
                    moved(received, size)
                return headers

        def receive_once() -> Headers:
            try:
                return receive()
            except Unreachable as error:
                raise error if is_fixed or not received else Failed(f"The connection broke: {error}") from error

        return self._retried(receive_once)

    @contextmanager
    def _streamed(self, path: str) -> Iterator[Response]:
        request = self._http.get(self._url(path)).build_streamed()
        response = self._run(request.__aenter__())
        try:
            self._check(response)
            yield response
        finally:
            with suppress(Unreachable):
                self._run(request.__aexit__(None, None, None))

    def _url(self, path: str) -> str:
        return self.connection.base_url + path

    def _json(self, request: RequestBuilder) -> Json:
        response = self._run(request.build().send())
        self._check(response)
        body = self._run(_text(response))
        try:
            value = json.loads(body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ApiError(response.status, f"{self.connection.base_url} did not answer in JSON. Is it the address of this API?")
        return value

    def _check(self, response: Response) -> None:
        if not 200 <= response.status < 300:
            raise _failure(response, self._run(_text(response)))

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            result = self._runner.run(call)
        except (PyreqwestError, TimeoutError) as error:
            address = urlsplit(self.connection.base_url)
            raise Unreachable(
                f"No answer from {address.scheme}://{address.netloc}: {_cause(error)}. Is `xalen-batch up` running there?"
            ) from error
        self._has_reached = True
        return result

    def _retried(self, send: Callable[[], T]) -> T:
        """Repeat on 408, 409, 429, 5xx and broken connections; a server never reached fails at once."""
        for pause in PAUSES:
            try:
                return send()
            except Unreachable:
                if not self._has_reached:
                    raise
                wait = pause * random.uniform(0.5, 1)
            except ApiError as error:
                if error.status not in (408, 409, 429) and error.status < 500:
                    raise
                wait = pause * random.uniform(0.5, 1) if error.retry_after is None else error.retry_after
                if wait > LONGEST_PAUSE:
                    raise
            time.sleep(wait)
        return send()


def connect(base_url: str | None, api_key: str | None, live: bool) -> Client:
    """A client for what the options, the environment and `credentials.toml` say."""
    return Client(find(base_url, api_key, live))


async def _open(connection: Connection) -> HttpClient:
    builder = (
        ClientBuilder()
        .default_headers({"Authorization": f"Bearer {connection.key}"})
        .user_agent("xalen-batch")
        .connect_timeout(timedelta(seconds=10))
        .tcp_user_timeout(timedelta(seconds=60))
        # The key goes where it was meant to go.
        .follow_redirects(False)
    )
    if urlsplit(connection.base_url).hostname in LOOPBACK:
        builder = builder.no_proxy()
    return builder.build()


async def _chunks(path: Path, size: int, moved: Moved) -> AsyncIterator[bytes]:
    sent = 0
    with path.open("rb") as source:
        while chunk := source.read(CHUNK):
            moved(sent, size)
            yield chunk
            sent += len(chunk)
    moved(sent, size)


async def _read(response: Response) -> bytes | None:
    async with asyncio.timeout(READ_TIMEOUT):
        chunk = await response.body_reader.read(CHUNK)
    return None if chunk is None else bytes(chunk)


async def _text(response: Response) -> str:
    return bytes(await response.bytes()).decode("utf-8", "replace")


def _length(headers: Headers) -> int | None:
    length = headers.get("content-length", "")
    return int(length) if length.isdigit() else None


def _failure(response: Response, body: str) -> ApiError:
    """The API's error envelope as one line, with the request id that support will ask for."""
    try:
        error = json.loads(body)["error"]
        message = str(error["message"])
        if error.get("param"):
            message += f" (param: {error['param']})"
    except (ValueError, KeyError, TypeError, AttributeError):
        message = "The answer is not in this API's shape. Is the address right?"
    request_id = response.get_header("x-request-id")
    return ApiError(
        response.status,
        f"{message} [HTTP {response.status}{f', request {request_id}' if request_id else ''}]",
        retry_after=_seconds(response.get_header("retry-after")),
    )


def _seconds(header: str | None) -> float | None:
    return float(header) if header is not None and header.replace(".", "", 1).isdigit() else None


def _cause(error: Exception) -> str:
    """The innermost reason that the HTTP library gives."""
    if isinstance(error, PyreqwestError):
        causes = getattr(error, "details", {}).get("causes") or []
        return str(causes[-1]["message"]) if causes else error.message
    return f"nothing came for {READ_TIMEOUT:.0f} s"
