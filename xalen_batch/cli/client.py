"""The API's client: retries requests that are safe to repeat, streams in constant memory, and stops
at once on Ctrl-C.

Built on the standard library. pyreqwest, the workers' client, delays Ctrl-C until a request has
ended (synchronous), or sometimes aborts the interpreter at exit (asynchronous).
"""

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import Request
from uuid import uuid4

from xalen_batch.cli import addresses, transport
from xalen_batch.cli.connection import LOOPBACK, ApiConnection, find
from xalen_batch.cli.failures import ApiError, Failed, Unreachable
from xalen_batch.cli.options import ApiKey, BaseUrl, Live
from xalen_batch.cli.output import safe, say
from xalen_batch.cli.partial_body import PartialBody
from xalen_batch.cli.progress import Moved

T = TypeVar("T")
Json = dict[str, Any]
Headers = Mapping[str, str]

CHUNK = 256 * 1024
# Objects in one page of a list.
PAGE = 100
# The most bytes that are read of a JSON object, or of the first line of a file. Ours are far below.
MOST_JSON = 64 * 1024 * 1024
# Seconds without a byte, not of a whole request.
TIMEOUT = 60.0
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
LONGEST_PAUSE = 120.0
# Seconds. A message on stderr announces a longer pause between two attempts.
SILENCE = 3.0


class Listing(NamedTuple):
    """The first objects of a list, and whether it may have more."""

    data: list[Json]
    has_more: bool


class ApiClient:
    """Every method raises ApiError, Unreachable, or Failed."""

    def __init__(self, connection: ApiConnection) -> None:
        self.connection = connection
        self._opener = transport.opener(connection.base_url)
        self._has_reached = False

    def get(self, path: str, **query: str | int | None) -> Json:
        """The JSON object of a GET."""
        return self._retried(lambda: self._json(self._request(_address(path, query))))

    def listing(
        self,
        limit: int,
        path: str,
        keep: Callable[[Json], bool] | None = None,
        **query: str | int | None,
    ) -> Listing:
        """The first `limit` objects of a list, over several pages.

        `keep`: count only objects for which it is true.
        """
        found: list[Json] = []
        page: Json = {"has_more": True, "last_id": None}
        while page["has_more"] and len(found) < limit:
            size = PAGE if keep else min(PAGE, limit - len(found))
            page = self.get(path, limit=size, after=page["last_id"], **query)
            found += filter(keep, page["data"]) if keep else page["data"]
        return Listing(found[:limit], page["has_more"] or len(found) > limit)

    def post(self, path: str, body: Json | None = None, **query: str | int | None) -> Json:
        """The JSON object of a POST. An Idempotency-Key makes it safe to repeat."""
        content = b"" if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": uuid4().hex}
        return self._retried(
            lambda: self._json(self._request(_address(path, query), headers, content))
        )

    def post_lines(self, path: str, content: bytes) -> Json:
        """The JSON object of a POST of JSONL lines, with an Idempotency-Key."""
        headers = {"Content-Type": "application/jsonl", "Idempotency-Key": uuid4().hex}
        return self._retried(lambda: self._json(self._request(path, headers, content)))

    def patch(self, path: str, body: Json) -> Json:
        """The JSON object of a PATCH, which is safe to repeat."""
        content, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        return self._retried(
            lambda: self._json(self._request(path, headers, content, method="PATCH"))
        )

    def delete(self, path: str, **query: str | int | None) -> Json:
        """The JSON object of a DELETE."""
        return self._retried(
            lambda: self._json(self._request(_address(path, query), method="DELETE"))
        )

    def upload(self, path: Path, filename: str, moved: Moved) -> Json:
        """Upload a file as batch input; its file object."""
        form = transport.Form(path, filename)
        headers = {
            "Content-Type": form.content_type,
            "Content-Length": str(form.length),
            "Idempotency-Key": uuid4().hex,
        }
        return self._retried(
            lambda: self._json(self._request("/files", headers, form.chunks(CHUNK, moved)))
        )

    def upload_part(self, path: str, content: bytes, arrived: Callable[[], Json | None]) -> Json:
        """Add a part to an upload; the part.

        A retry first asks `arrived` for the part: its answer may have been lost.
        """
        kind, body = transport.part(content)
        attempts = 0

        def send() -> Json:
            nonlocal attempts
            attempts += 1
            found = arrived() if attempts > 1 else None
            return found or self._json(self._request(path, {"Content-Type": kind}, body))

        return self._retried(send)

    def download(
        self, path: str, write: Callable[[bytes], object], moved: Moved, *, is_fixed: bool
    ) -> Headers:
        """Pass a body to `write` in chunks; returns the answer's headers, in lower case.

        `is_fixed`: the body does not change, so the download resumes after a broken connection.
        Raises Failed if the bytes do not have the digest that the server stated.
        """
        body = PartialBody(write, moved)

        def receive() -> Headers:
            with closing(self._open(self._request(path, body.resuming()))) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                body.begin(response.status, headers, response.length)
                try:
                    for chunk in self._chunks(response):
                        body.take(chunk)
                except Unreachable as error:
                    raise error if is_fixed or not body.received else Failed(str(error)) from error
                return headers

        headers = self._retried(receive, received=lambda: body.received)
        body.check()
        return headers

    def events(self, path: str, *, silence: float) -> Iterator[Json | None]:
        """The objects of a stream of server-sent events, once; None for a comment of the server.

        Not repeated. ApiError if the answer is no stream, Unreachable if it breaks off or has no
        byte for `silence` seconds.
        """
        request = self._request(path, {"Accept": "text/event-stream"})
        with closing(self._open(request, silence)) as response:
            if response.headers.get_content_type() != "text/event-stream":
                raise ApiError(response.status, "The answer is no stream of events.")
            try:
                while line := response.readline(MOST_JSON):
                    if line.startswith(b"data:"):
                        yield json.loads(line[len("data:") :])
                    elif line.startswith(b":"):
                        yield None
            except (OSError, HTTPException, ValueError) as error:
                raise self._unreachable(error) from error

    def first_line(self, path: str) -> bytes:
        """The first line of a body that is not blank. Does not wait for the rest."""

        def read() -> bytes:
            with closing(self._open(self._request(path))) as response:
                found = b""
                for chunk in self._bounded(response):
                    found = (found + chunk).lstrip()
                    if b"\n" in found:
                        break
                return found.partition(b"\n")[0]

        return self._retried(read)

    def _request(
        self,
        path: str,
        headers: Headers | None = None,
        body: bytes | Iterator[bytes] | None = None,
        *,
        method: str | None = None,
    ) -> Request:
        credentials = {
            "Authorization": f"Bearer {self.connection.key}",
            "User-Agent": "xalen-batch",
            "Accept": "*/*",
        }
        return Request(
            self.connection.base_url + path,
            data=body,
            headers=credentials | dict(headers or {}),
            method=method,
        )

    def _json(self, request: Request) -> Json:
        with closing(self._open(request)) as response:
            body = b"".join(self._bounded(response))
        try:
            value = json.loads(body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ApiError(
                response.status,
                f"{self.connection.base_url} did not answer in JSON. Is it the address of this"
                " API?",
            )
        return value

    def _open(self, request: Request, timeout: float = TIMEOUT) -> HTTPResponse:
        try:
            response: HTTPResponse = self._opener.open(request, timeout=timeout)
        except HTTPError as error:
            self._has_reached = True
            with error:
                raise self._redirect(error) or _failure(error, self.connection.base_url) from None
        except (OSError, HTTPException) as error:
            raise self._unreachable(
                error.reason if isinstance(error, URLError) else error
            ) from error
        self._has_reached = True
        return response

    def _bounded(self, response: HTTPResponse) -> Iterator[bytes]:
        """The chunks of a body that is kept in memory; Failed above MOST_JSON bytes."""
        size = 0
        for chunk in self._chunks(response):
            size += len(chunk)
            if size > MOST_JSON:
                raise Failed(
                    f"{self.connection.base_url} sent more than {MOST_JSON} bytes. Is it the"
                    " address of this API?"
                )
            yield chunk

    def _chunks(self, response: HTTPResponse) -> Iterator[bytes]:
        """The chunks of a body; Unreachable if it ends early."""
        size, seen = response.length, 0
        try:
            while chunk := response.read(CHUNK):
                seen += len(chunk)
                yield chunk
        except (OSError, HTTPException) as error:
            raise self._unreachable(error) from error
        if size is not None and seen < size:
            raise self._unreachable("the connection ended in the middle of the answer")

    def _redirect(self, error: HTTPError) -> ApiError | None:
        if not 300 <= error.code < 400:
            return None
        target = urlsplit(urljoin(error.url, error.headers.get("location", "")))
        return ApiError(
            error.code,
            f"{self.connection.base_url} redirects to {target.scheme}://{target.hostname or ''},"
            f" and nothing was sent there [HTTP {error.code}]. If the API is there, give its"
            " address with the key that belongs to it.",
        )

    def _unreachable(self, reason: object) -> Unreachable:
        base_url = self.connection.base_url
        if not self._has_reached and (message := addresses.wrong_scheme(base_url, reason)):
            return Unreachable(message)
        address = urlsplit(base_url)
        words = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        remedy = (
            "Is `xalen-batch up` running there?"
            if address.hostname in LOOPBACK
            else "Check the address, and that the server runs."
        )
        return Unreachable(f"No answer from {address.scheme}://{address.netloc}: {words}. {remedy}")

    def _retried(self, send: Callable[[], T], received: Callable[[], int] = lambda: 0) -> T:
        """Call `send`, and repeat it with backoff on 408, 409, 429, 5xx and broken connections.

        Does not repeat if the server says not to, nor if it was never reached. `received`: the
        bytes of a download so far; the pauses start again whenever there are more.
        """
        pauses, before = iter(PAUSES), received()
        while True:
            try:
                return send()
            except (Unreachable, ApiError) as error:
                if received() > before:
                    pauses, before = iter(PAUSES), received()
                wait = self._pause(error, next(pauses, None))
                if wait is None:
                    raise
                reason = str(error)
            if wait >= SILENCE:
                say(f"{safe(reason)} Trying again in {wait:.0f} s.", style="yellow")
            time.sleep(wait)

    def _pause(self, error: Unreachable | ApiError, pause: float | None) -> float | None:
        """The seconds to wait after an error; None if the request is not repeated."""
        if pause is None:
            return None
        wait = pause * random.uniform(0.5, 1)
        if isinstance(error, Unreachable):
            return wait if self._has_reached else None
        wait = wait if error.retry_after is None else error.retry_after
        return wait if error.may_pass and wait <= LONGEST_PAUSE else None


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """The connection options of each command that talks to the API (`with_option_groups`)."""

    base_url: BaseUrl = None
    api_key: ApiKey = None
    live: Live = False

    def connect(self) -> ApiClient:
        """A client for the server of these options, the environment or `credentials.toml`."""
        return ApiClient(find(self.base_url, self.api_key, self.live))


def _address(path: str, query: Mapping[str, str | int | None]) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def _failure(error: HTTPError, base_url: str) -> ApiError:
    """The API's error envelope as one line, with the request id for the support."""
    code, message = None, None
    try:
        told = json.loads(error.read(CHUNK))["error"]
        message, code = str(told["message"]), told.get("code")
        if told.get("param"):
            message += f" (param: {told['param']})"
    except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError):
        pass
    message = (message or "The answer is not in this API's shape.") + addresses.hint(
        base_url, error.code, message, code
    )
    request_id = error.headers.get("x-request-id")
    wait, should_retry = error.headers.get("retry-after", ""), error.headers.get("x-should-retry")
    return ApiError(
        error.code,
        f"{message} [HTTP {error.code}{f', request {request_id}' if request_id else ''}]",
        code=code,
        retry_after=float(wait) if wait.replace(".", "", 1).isdigit() else None,
        should_retry=should_retry == "true" if should_retry in ("true", "false") else None,
    )
