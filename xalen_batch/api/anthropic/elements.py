"""The elements of a JSON document's list, one at a time, while the document is read.

A parser that builds the whole document holds many times its bytes. The incremental parsers that
exist bound no element, and one of them takes memory by the square of the nesting (decision 67).
"""

import re
from collections.abc import Iterable, Iterator

import orjson

from xalen_batch.errors import InvalidRequest, TooLarge

_SPACE = re.compile(rb"[ \t\r\n]*")
# Up to the end of a string, or to a lone backslash at the end of what has been read.
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
# What needs no count of the nesting, up to the next other quote or bracket: whole strings, and
# objects and lists without nested ones. Nothing is tried twice, so it takes linear time.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_PLAIN = rb'[^"{}\[\]]++'
_FLAT = re.compile(
    rb"(?:%b|%b|\{(?:%b|%b)*+\}|\[(?:%b|%b)*+\])*+" % ((_PLAIN, _STRING) * 3), re.DOTALL
)
_SCALAR_END = re.compile(rb"[,\]}\s]")
_OPEN, _CLOSE = b"{[", b"}]"
# Brackets around nested objects and lists in one document, at about 1 µs each. 200 MB of messages
# of three words, each in a list of parts, have 12 million.
MOST_BRACKETS = 20_000_000
REMEDY = 'Send {"requests": [{"custom_id": …, "params": {…}}, …]}.'


def elements(chunks: Iterable[bytes], name: str, *, longest: int) -> Iterator[bytes]:
    """The bytes of each element of the list `name` in a JSON object.

    The other values of the object are skipped. Raises InvalidRequest for a document that is not of
    this form, and TooLarge for a value of more than `longest` bytes. An element is only cut out:
    its caller parses it.
    """
    reader = _Reader(iter(chunks), longest)
    found = False
    for key in reader.members():
        if key != name or reader.next() != b"[":
            _parsed(reader.value())
            continue
        found = True
        yield from reader.items()
    if not found:
        raise InvalidRequest(f"{name}: a list is missing. {REMEDY}", param=name)


class _Reader:
    """A position in a stream of JSON. It holds one value at most, and the chunk around it."""

    def __init__(self, chunks: Iterator[bytes], longest: int) -> None:
        self._chunks = chunks
        self._longest = longest
        self._held = b""
        self._at = 0
        self._brackets = 0

    def members(self) -> Iterator[str]:
        """The keys of the document's object; the caller reads the value of each in between."""
        self._take(b"{")
        while self.next() != b"}":
            key = _parsed(self.value())
            if not isinstance(key, str):
                raise _broken()
            self._take(b":")
            yield key
            if self.next() != b"}":
                self._take(b",")
                if self.next() == b"}":
                    raise _broken()
        self._at += 1
        if self.next():
            raise _broken()

    def items(self) -> Iterator[bytes]:
        """The elements of the list that begins here."""
        self._take(b"[")
        while self.next() != b"]":
            yield self.value()
            if self.next() != b"]":
                self._take(b",")
                if self.next() == b"]":
                    raise _broken()
        self._at += 1

    def next(self) -> bytes:
        """The next byte that is no space, which stays; empty at the end."""
        while True:
            space = _SPACE.match(self._held, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._held):
                return self._held[self._at : self._at + 1]
            if not self._more():
                return b""

    def value(self) -> bytes:
        """The bytes of the value that begins here, which is behind the position then."""
        first = self.next()
        if not first or first in b",:]}":
            raise _broken()
        if first == b'"':
            end = self._string_end(1)
        elif first in _OPEN:
            end = self._closed(1)
        else:
            end = self._found_end(_SCALAR_END)
        value = self._held[self._at : self._at + end]
        self._at += end
        return value

    def _closed(self, end: int) -> int:
        """The length of the object or list that begins here."""
        depth, steps = 1, 0
        while depth:
            steps += 1
            flat = _FLAT.match(self._held, self._at + end)
            end = flat.end() - self._at if flat else end
            found = self._held[self._at + end : self._at + end + 1]
            if not found:
                self._need_more()
                continue
            end += 1
            if found == b'"':
                end = self._string_end(end)
            else:
                depth += 1 if found in _OPEN else -1
        self._brackets += steps
        if self._brackets > MOST_BRACKETS:
            raise TooLarge(
                f"The request has more than {MOST_BRACKETS:,} nested objects and lists. Split it"
                " into several batches.",
                code="request_too_large",
            )
        return end

    def _string_end(self, end: int) -> int:
        """The length from the position to behind a string's closing quote; `end` is inside it."""
        while True:
            found = _IN_STRING.match(self._held, self._at + end)
            end = found.end() - self._at if found else end
            if self._held[self._at + end : self._at + end + 1] == b'"':
                return end + 1
            self._need_more()

    def _found_end(self, pattern: re.Pattern[bytes]) -> int:
        end = 0
        while True:
            found = pattern.search(self._held, self._at + end)
            if found is not None:
                return found.start() - self._at
            end = len(self._held) - self._at
            self._need_more()

    def _take(self, byte: bytes) -> None:
        if self.next() != byte:
            raise _broken()
        self._at += 1

    def _need_more(self) -> None:
        if len(self._held) - self._at > self._longest:
            raise TooLarge(
                f"The request has a value of more than {self._longest:,} bytes, the most for one"
                " line of a batch. Shorten it, or refer to large content by URL.",
                code="request_too_large",
            )
        if not self._more():
            raise _broken()

    def _more(self) -> bool:
        """Read a chunk, and drop what is behind the position; False at the end."""
        chunk = next(self._chunks, b"")
        self._held = self._held[self._at :] + chunk
        self._at = 0
        return bool(chunk)


def _parsed(value: bytes) -> object:
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        raise _broken() from None


def _broken() -> InvalidRequest:
    return InvalidRequest(
        f"The body is not valid JSON, or ends early. {REMEDY}", code="invalid_json"
    )
