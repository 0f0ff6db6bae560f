"""Adds to the standard library's HTTP: early answers to uploads, no redirects, a streamed form."""

from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    build_opener,
)
from uuid import uuid4

from xalen_batch.cli.connection import LOOPBACK
from xalen_batch.cli.progress import Moved


def opener(base_url: str) -> OpenerDirector:
    """An opener for URLs of one server.

    Only https goes through the environment's proxies: with http, a proxy could read the key.
    """
    handlers = [_Http(), _Https(), _NoRedirect()]
    parts = urlsplit(base_url)
    is_direct = parts.scheme == "http" or parts.hostname in LOOPBACK
    return build_opener(*handlers, ProxyHandler({})) if is_direct else build_opener(*handlers)


class _PatientConnection(HTTPConnection):
    """Reads the answer of a server that refuses an upload and closes, in place of a broken pipe."""

    def send(self, data: Any) -> None:
        try:
            super().send(data)
        except (BrokenPipeError, ConnectionResetError):
            if self.sock is None:
                raise


class _PatientTlsConnection(_PatientConnection, HTTPSConnection):
    pass


class _Http(HTTPHandler):
    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_PatientConnection, req)


class _Https(HTTPSHandler):
    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_PatientTlsConnection, req)


class _NoRedirect(HTTPRedirectHandler):
    """Makes a redirect an error: urllib would send the key to its target."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Form:
    """A multipart form with a file as batch input. Its length is known before it is read."""

    def __init__(self, path: Path, filename: str) -> None:
        boundary = uuid4().hex
        self._path = path
        self._size = path.stat().st_size
        self._head = (
            f"--{boundary}\r\nContent-Disposition: form-data;"
            f' name="purpose"\r\n\r\nbatch\r\n--{boundary}\r\nContent-Disposition: form-data;'
            f' name="file"; filename="{_quoted(filename)}"\r\nContent-Type:'
            " application/octet-stream\r\n\r\n"
        ).encode("utf-8", "surrogateescape")
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self.length = len(self._head) + self._size + len(self._tail)

    def chunks(self, size: int, moved: Moved) -> Iterator[bytes]:
        """The bytes of the form; `moved` is called with the number of the file's bytes so far."""
        yield self._head
        sent = 0
        with self._path.open("rb") as source:
            # Not more bytes than Content-Length has, even if the file grows meanwhile.
            while chunk := source.read(min(size, self._size - sent)):
                yield chunk
                sent += len(chunk)
                moved(sent, self._size)
        yield self._tail


def part(content: bytes) -> tuple[str, bytes]:
    """The content type and the body of a form with a part of an upload."""
    boundary = uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="data"; filename="data"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    body = b"".join((head, content, f"\r\n--{boundary}--\r\n".encode()))
    return f"multipart/form-data; boundary={boundary}", body


def _quoted(filename: str) -> str:
    """A name in the form's header, escaped as browsers do."""
    return filename.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
