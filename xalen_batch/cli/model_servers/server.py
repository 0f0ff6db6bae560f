"""HTTP to a model server that is not in the catalog yet, or is checked from the command line."""

import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, ProxyHandler, Request, build_opener

from xalen_batch.cli.connection import LOOPBACK

LONGEST_ANSWER = 4 * 1024 * 1024
# Characters of an error that are shown.
LONGEST_ERROR = 2_000


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, or the reason why there is none (`status` 0)."""

    status: int
    body: bytes = b""
    reason: str = ""

    @property
    def json(self) -> Any:
        """The decoded body of a 200; None for anything else."""
        if self.status != 200:
            return None
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @property
    def table(self) -> dict[str, Any]:
        """The decoded body if it is a JSON object, else an empty one."""
        found = self.json
        return found if isinstance(found, dict) else {}

    @property
    def error(self) -> str:
        """The status with the body as the server wrote it, or the reason."""
        if not self.status:
            return self.reason
        text = self.body[:LONGEST_ERROR].decode("utf-8", "replace").strip()
        return f"{self.status} {text}".rstrip()


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class Server:
    """A server by its address. `headers` may hold its key; redirects are not followed."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        certificates: Sequence[bytes] = (),
        *,
        timeout: float,
    ) -> None:
        self.url = url.rstrip("/")
        self._headers = {"accept": "application/json", **(headers or {})}
        self._timeout = timeout
        trusted = ssl.create_default_context()
        if certificates:
            text = b"\n".join(certificates).decode("ascii", "replace")
            trusted.load_verify_locations(cadata=text)
        handlers: list[Any] = [_NoRedirect, HTTPSHandler(context=trusted)]
        if urlsplit(self.url).hostname in LOOPBACK:
            handlers.append(ProxyHandler({}))
        self._open = build_opener(*handlers).open

    def get(self, path: str) -> Reply:
        """Ask for a path under the address; a path with a leading `//` is one of the host."""
        return self._send(Request(self._address(path), headers=self._headers))

    def post(self, path: str, body: Mapping[str, Any]) -> Reply:
        headers = {**self._headers, "content-type": "application/json"}
        asked = Request(self._address(path), json.dumps(body).encode(), headers, method="POST")
        return self._send(asked)

    def _address(self, path: str) -> str:
        if not path.startswith("//"):
            return self.url + path
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{path[1:]}"

    def _send(self, asked: Request) -> Reply:
        try:
            with self._open(asked, timeout=self._timeout) as answer:
                return Reply(int(answer.status), answer.read(LONGEST_ANSWER))
        except HTTPError as error:
            with error:
                return Reply(error.code, error.read(LONGEST_ANSWER))
        except (OSError, HTTPException, ValueError) as error:
            cause = getattr(error, "reason", error)
            return Reply(0, reason=getattr(cause, "strerror", None) or str(cause) or repr(cause))
