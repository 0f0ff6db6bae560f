"""What the standard library's HTTP lacks: answers that come before an upload has ended, no
redirects, a streamed form.
"""

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
    """Opens URLs below an address.

    Only TLS goes through the environment's proxies: of plain HTTP they would read the key.
    """
    handlers = [_Http(), _Https(), _NoRedirect()]
    parts = urlsplit(base_url)
    is_direct = parts.scheme == "http" or parts.hostname in LOOPBACK
    return build_opener(*handlers, ProxyHandler({})) if is_direct else build_opener(*handlers)


class _PatientConnection(HTTPConnection):
    """A server that refuses an upload answers and closes; the answer counts, not the broken pipe."""

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
    """urllib would send the key on to wherever a redirect points.

    The answer, 3xx, is an error instead.
    """

    def redirect_request(self, *_: Any) -> None:
        return None


class Form:
    """A multipart form with a file for batch input; its length is known before it is read."""

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
        """The form's bytes; `moved` hears how many of the file's have gone."""
        yield self._head
        sent = 0
        with self._path.open("rb") as source:
            # Never more than announced: a file that still grows is cut where it ended.
            while chunk := source.read(min(size, self._size - sent)):
                yield chunk
                sent += len(chunk)
                moved(sent, self._size)
        yield self._tail


def _quoted(filename: str) -> str:
    """As browsers write a name into a form's header."""
    return filename.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
