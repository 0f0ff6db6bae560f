"""The content of a file, as downloads send it: an object, or lines rendered from rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from xalen_batch import results, storage
from xalen_batch.models import File
from xalen_batch.models.files import FilePart
from xalen_batch.storage import frames


@dataclass(frozen=True, slots=True)
class Rendered:
    """Lines that are rendered while they are sent.

    `size` is None while the number of lines still grows. The lines can only be read whole.
    """

    chunks: Callable[[], Iterator[bytes]]
    size: int | None


@dataclass(frozen=True, slots=True)
class Zstd:
    """The whole content as zstd frames, which any decoder reads."""

    chunks: Callable[[], Iterator[bytes]]
    size: int


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes that never change. `chunks(start, end)` reads a range; nothing is read before that.

    `zstd`: the same content as it is stored in compressed form, if it is.
    """

    chunks: Callable[[int, int], Iterator[bytes]]
    size: int
    sha256: bytes
    zstd: Zstd | None = None


Content = Rendered | Stored


def of(file: File) -> Content:
    """The content of a file that is ready (`files.is_ready`)."""
    match file:
        case File(batch_id=None, sha256=bytes() as sha256):
            return Stored(partial(storage.chunks, storage.key(file.id)), file.size, sha256)
        case File(batch_id=UUID() as batch_id, part=str() as part, sha256=None):
            return Rendered(partial(results.chunks, batch_id, FilePart(part)), file.size)
        case File(sha256=bytes() as sha256, stored_bytes=int() as stored_bytes):
            return _sealed(file, sha256, stored_bytes)
    raise ValueError("the file has no content yet")


def _sealed(file: File, sha256: bytes, stored_bytes: int) -> Stored:
    key = storage.output_key(file.id)
    size = frames.compressed_size(file.size, stored_bytes)
    return Stored(
        partial(frames.chunks, key),
        file.size,
        sha256,
        Zstd(partial(storage.chunks, key, 0, size), size),
    )
