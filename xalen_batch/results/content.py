"""The content of a file, as downloads send it: an object, or lines rendered from rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import select

from xalen_batch import db, log, storage
from xalen_batch.models import File
from xalen_batch.models.files import FilePart
from xalen_batch.results import results
from xalen_batch.storage import frames, marks

logger = log.get(__name__)

# Files whose objects `look` looks for at once.
FILES_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class Rendered:
    """Lines that are rendered while they are sent.

    `size` is None while the number of lines still grows. The lines can only be read whole. `files`:
    those that are read side by side.
    """

    chunks: Callable[[], Iterator[bytes]]
    size: int | None
    files: int = 1


@dataclass(frozen=True, slots=True)
class Zstd:
    """The whole content as zstd frames, which any decoder reads.

    `is_there` is false for a lost object, for which rows stand in that are not compressed.
    """

    chunks: Callable[[], Iterator[bytes]]
    size: int
    is_there: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes that never change. `chunks(start, end)` reads a range; nothing is read before that.

    `confirm` raises the error that `chunks` would raise for a lost object; it reads no content.
    `zstd`: the same content as it is stored in compressed form, if it is.
    """

    chunks: Callable[[int, int], Iterator[bytes]]
    confirm: Callable[[], None]
    size: int
    sha256: bytes
    zstd: Zstd | None = None


Content = Rendered | Stored


def of(file: File) -> Content:
    """The content of a file that is ready (`files.is_ready`)."""
    match file:
        case File(batch_id=None, sha256=bytes() as sha256):
            key = storage.key(file.id)
            return Stored(partial(storage.chunks, key), partial(_confirm, key), file.size, sha256)
        case File(batch_id=UUID() as batch_id, part=str() as part, sha256=None):
            return Rendered(partial(results.chunks, batch_id, FilePart(part)), file.size)
        case File(sha256=bytes() as sha256, stored_bytes=int() as stored_bytes):
            return _sealed(file, sha256, stored_bytes)
    raise ValueError("the file has no content yet")


def _sealed(file: File, sha256: bytes, stored_bytes: int) -> Stored:
    key, size = storage.output_key(file.id), frames.compressed_size(file.size, stored_bytes)
    zstd = Zstd(partial(storage.chunks, key, 0, size), size, lambda: storage.look(key)[1])
    return Stored(
        partial(_of_sealed, file), partial(_confirm_sealed, file), file.size, sha256, zstd
    )


def behind(found: Content, lines: int) -> Rendered:
    """The same content without its first `lines` lines."""
    return Rendered(partial(_behind, found, lines), None)


def whole(found: Content) -> Iterator[bytes]:
    """All bytes of a content."""
    match found:
        case Stored():
            return found.chunks(0, found.size)
        case Rendered():
            return found.chunks()


def _behind(found: Content, lines: int) -> Iterator[bytes]:
    for chunk in whole(found):
        ends = chunk.count(b"\n") if lines else 0
        if ends < lines:
            lines -= ends
            continue
        begin = 0
        for _ in range(lines):
            begin = chunk.find(b"\n", begin) + 1
        lines = 0
        if begin < len(chunk):
            yield chunk[begin:]


def _confirm(key: str) -> None:
    """Raise FileNotFoundError if an object is lost, another OSError if the store is away."""
    if not storage.look(key)[1]:
        marks.confirm_gone(key)
        raise FileNotFoundError(key)


def _confirm_sealed(file: File) -> None:
    """As `_confirm`, unless there are rows, which stand in for a lost object."""
    try:
        _confirm(storage.output_key(file.id))
    except FileNotFoundError:
        if next(_rows(file), None) is None:
            raise


def _of_sealed(file: File, start: int, end: int) -> Iterator[bytes]:
    """A range of a sealed file: of its object, or if that is lost, of its rows while there are any.

    Raises FileNotFoundError.
    """
    key = storage.output_key(file.id)
    try:
        reader = frames.Reader(key)
    except FileNotFoundError:
        # The folder may be an older copy. If it is away, its mark is away too.
        marks.confirm_gone(key)
        logger.error("file.lost", file_id=file.id)
        found = _cut(_rows(file), start, end)
        first = next(found, None)
        if first is None:
            raise
        yield first
        yield from found
    else:
        yield from reader.chunks(start, end)


def _rows(file: File) -> Iterator[bytes]:
    assert file.batch_id is not None
    assert file.part is not None
    return results.chunks(file.batch_id, FilePart(file.part))


def _cut(chunks: Iterator[bytes], start: int, end: int) -> Iterator[bytes]:
    """The bytes from the offset `start` until `end` of a stream."""
    offset = 0
    for chunk in chunks:
        part = chunk[max(0, start - offset) : max(0, end - offset)]
        offset += len(chunk)
        if part:
            yield part
        if offset >= end:
            return


class Looked(NamedTuple):
    """Files whose objects were looked for. `last`: the highest of their ids; `lost`: the ids and
    sizes of those whose object is not in the store.
    """

    number: int
    last: UUID
    lost: dict[UUID, int]


def look(after: UUID) -> Looked | None:
    """Look for the objects of the next files with an id above `after`; None: there are no more.

    Raises marks.Elsewhere for a folder that is not the store.
    """
    is_stored = (File.deleted_at.is_(None), File.sha256.is_not(None))
    with db.reading() as session:
        files = session.execute(
            select(File.id, File.batch_id, File.size)
            .where(File.id > after, *is_stored)
            .order_by(File.id)
            .limit(FILES_AT_ONCE)
        ).all()
    if not files:
        return None
    marks.confirm()
    stored = {
        storage.key(file.id) if file.batch_id is None else storage.output_key(file.id): file
        for file in files
    }
    gone = storage.missing(stored)
    for key in gone:
        marks.confirm_gone(key)
    lost = {stored[key].id: stored[key].size for key in gone}
    # An object is deleted before its row is: the lock waits for that transaction.
    kept = select(File.id).where(File.id.in_(lost), *is_stored)
    with db.transaction() as session:
        left = session.scalars(kept.order_by(File.id).with_for_update(read=True))
        return Looked(len(files), files[-1].id, {id: lost[id] for id in left})
