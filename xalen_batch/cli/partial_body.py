"""A downloaded body that may come in the parts of several answers, and its digest."""

import base64
import hashlib
import re
from collections.abc import Callable, Mapping

from xalen_batch.cli.failures import Failed
from xalen_batch.cli.progress import Moved

_SHA256 = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]{43}=):")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)", re.ASCII)


class PartialBody:
    """Passes each byte of a body to `write` once, however many answers it takes.

    If the connection breaks, `resuming()` has the fields that ask for the rest. An answer with the
    whole body is right too: the bytes that were written before are skipped.
    """

    def __init__(self, write: Callable[[bytes], object], moved: Moved) -> None:
        self.received = 0
        self._write = write
        self._moved = moved
        self._hash = hashlib.sha256()
        # What the answers so far stated of the whole body.
        self._tag: str | None = None
        self._sha256: bytes | None = None
        # Of the current answer: the position of its next byte, and the size of the whole body.
        self._position = 0
        self._size: int | None = None

    def resuming(self) -> dict[str, str]:
        """The fields of a request for the rest; none without bytes or without an entity tag."""
        if not self.received or self._tag is None:
            return {}
        return {"Range": f"bytes={self.received}-", "If-Range": self._tag}

    def begin(self, status: int, headers: Mapping[str, str], length: int | None) -> None:
        """Read the fields, in lower case, of an answer whose chunks follow; Failed if it is not
        the same body.
        """
        tag = headers.get("etag", self._tag)
        if self._tag is not None and tag != self._tag:
            raise Failed("The file changed while it was downloaded. Download it again.")
        # A weak tag does not promise the same bytes.
        self._tag = None if tag is None or tag.startswith("W/") else tag
        stated = _SHA256.search(headers.get("repr-digest", ""))
        if stated:
            self._sha256 = base64.b64decode(stated[1])
        self._position, self._size = 0, length
        if status == 206:
            part = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
            if part is None or int(part[1]) > self.received:
                raise Failed("The server answered with another range than it was asked for.")
            self._position, self._size = int(part[1]), int(part[2])

    def take(self, chunk: bytes) -> None:
        """Write the bytes of the current answer's next chunk that were not written before."""
        fresh = chunk[max(self.received - self._position, 0) :]
        self._position += len(chunk)
        if fresh:
            self._write(fresh)
            self._hash.update(fresh)
            self.received = self._position
            self._moved(self.received, self._size)

    def check(self) -> None:
        """Raise Failed if the bytes do not have the digest that the server stated."""
        if self._sha256 not in (None, self._hash.digest()):
            raise Failed(
                f"The {self.received:,} bytes that were received do not have the SHA-256 digest"
                " that the server stated: they were damaged on the way or in its storage. Download"
                " them again."
            )
