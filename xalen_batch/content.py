"""The content of a file, as downloads send it: a stored object, or lines rendered from rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from xalen_batch import results, storage
from xalen_batch.models import File
from xalen_batch.models.files import FilePart


@dataclass(frozen=True, slots=True)
class Rendered:
    """Lines that are rendered while they are sent.

    `size` is None while the number of lines still grows. The lines can only be read whole.
    """

    chunks: Callable[[], Iterator[bytes]]
    size: int | None


@dataclass(frozen=True, slots=True)
class Zstd:
    """The whole content in zstd frames."""

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
    if file.batch_id is not None and file.part is not None:
        return Rendered(partial(results.chunks, file.batch_id, FilePart(file.part)), file.size)
    if file.sha256 is None:
        raise ValueError("the file has no content yet")
    return Stored(partial(storage.chunks, storage.key(file.id)), file.size, file.sha256)
