"""Compressed objects that can be read from any offset: the Zstandard Seekable Format.

An object is a sequence of zstd frames and a table of their sizes in a skippable frame at the end,
so any zstd decoder reads the whole of it. Each frame but the last holds FRAME_BYTES of content: the
frame of an offset is found by division, and memory is bounded whatever the length of a line.
"""

import hashlib
import struct
import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import NamedTuple, Self

import obstore

from xalen_batch import storage
from xalen_batch.config import MiB

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FRAME_BYTES = 1 * MiB
# Level 3 takes an eighth more time and saves a twelfth more; level 9 takes three times as long.
LEVEL = 1

# https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md
_SKIPPABLE, _SEEKABLE = 0x184D2A5E, 0x8F92EAB1
_HEADER = struct.Struct("<II")  # magic number, bytes that follow
_ENTRY = struct.Struct("<II")  # bytes of a frame, bytes of its content
_FOOTER = struct.Struct("<IBI")  # number of entries, flags, magic number
# Bytes at the end of an object that are read first. They hold the table of 8 GB of content.
_TAIL = 64 * 1024


class Damaged(OSError):
    """An object that is not as it was written."""


class Content(NamedTuple):
    """The content of an object: its bytes and SHA-256, and the bytes of the object itself."""

    size: int
    sha256: bytes
    stored_size: int


class Writer:
    """`with Writer(key) as out: out.write(…)`; an error inside leaves no object. For one thread."""

    def __init__(self, key: str) -> None:
        self._file = obstore.open_writer(storage.store(), key, buffer_size=storage.WRITE_BUFFER)
        self._compressor = zstd.ZstdCompressor(
            options={
                zstd.CompressionParameter.compression_level: LEVEL,
                # Four bytes a frame, by which a reader finds a damaged one.
                zstd.CompressionParameter.checksum_flag: 1,
            }
        )
        self._held = bytearray()
        self._entries: list[bytes] = []
        self._hash = hashlib.sha256()
        self._size = self._stored = 0

    def __enter__(self) -> Self:
        self._file.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._finish()
        self._file.__exit__(kind, error, trace)

    @property
    def content(self) -> Content:
        """What was written so far."""
        return Content(self._size, self._hash.digest(), self._stored)

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._size += len(data)
        self._held += data
        while len(self._held) >= FRAME_BYTES:
            self._frame(bytes(self._held[:FRAME_BYTES]))
            del self._held[:FRAME_BYTES]

    def _frame(self, content: bytes) -> None:
        frame = self._compressor.compress(content, mode=zstd.ZstdCompressor.FLUSH_FRAME)
        self._entries.append(_ENTRY.pack(len(frame), len(content)))
        self._put(frame)

    def _finish(self) -> None:
        if self._held:
            self._frame(bytes(self._held))
        table = b"".join(self._entries) + _FOOTER.pack(len(self._entries), 0, _SEEKABLE)
        self._put(_HEADER.pack(_SKIPPABLE, len(table)) + table)

    def _put(self, stored: bytes) -> None:
        self._file.write(stored)
        self._stored += len(stored)


def write(key: str, chunks: Iterable[bytes]) -> Content:
    """Write chunks as one object. If the iterator raises, an older object stays as it was."""
    with Writer(key) as out:
        for chunk in chunks:
            out.write(chunk)
    return out.content


def compressed_size(size: int, stored_size: int) -> int:
    """The bytes of an object's frames, without the table behind them."""
    frames = -(-size // FRAME_BYTES)
    return stored_size - _HEADER.size - frames * _ENTRY.size - _FOOTER.size


class Reader:
    """The frames of an object. Immutable once made, so any thread may read.

    Raises FileNotFoundError without the object, and Damaged if it is not as it was written.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self.stored_size = storage.size(key)
        self._ends, self.size = _table(key, self.stored_size)

    def chunks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The content from the offset `start` until `end`, at most FRAME_BYTES at a time."""
        end = self.size if end is None else min(end, self.size)
        if start >= end:
            return
        for n in range(start // FRAME_BYTES, -(-end // FRAME_BYTES)):
            content = self._content(n)
            offset = n * FRAME_BYTES
            if start <= offset and offset + len(content) <= end:
                yield content
            else:
                yield content[max(0, start - offset) : end - offset]

    def _content(self, n: int) -> bytes:
        raw = storage.read(self._key, self._ends[n], self._ends[n + 1])
        length = min(FRAME_BYTES, self.size - n * FRAME_BYTES)
        try:
            # The limit also holds for a damaged frame.
            content = zstd.ZstdDecompressor().decompress(raw, max_length=length + 1)
        except Exception as error:
            raise Damaged(f"{self._key}: frame {n} cannot be read: {error}") from error
        if len(content) != length:
            raise Damaged(f"{self._key}: frame {n} has {len(content)} bytes, not {length}")
        return content


def _table(key: str, stored_size: int) -> tuple[list[int], int]:
    """The end of each frame, behind a 0, and the bytes of the content."""
    tail = _last(key, stored_size, _TAIL)
    count, flags, magic = _FOOTER.unpack(tail[-_FOOTER.size :].rjust(_FOOTER.size, b"\0"))
    if magic != _SEEKABLE or flags:
        raise Damaged(f"{key}: it has no table of frames")
    length = count * _ENTRY.size + _FOOTER.size
    if len(tail) < length:
        tail = _last(key, stored_size, length)
    if len(tail) < length:
        raise Damaged(f"{key}: its table of frames is cut off")
    ends, size = [0], 0
    for stored, content in _ENTRY.iter_unpack(tail[-length : -_FOOTER.size]):
        ends.append(ends[-1] + stored)
        size += content
    if ends[-1] + _HEADER.size + length != stored_size:
        raise Damaged(f"{key}: its frames do not add up to its {stored_size} bytes")
    return ends, size


def _last(key: str, stored_size: int, length: int) -> bytes:
    start = max(0, stored_size - length)
    if start == stored_size:
        return b""
    return storage.read(key, start, stored_size)
