"""Writes the input file of a retry: the lines of the first batch that failed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.orm import Session

from xalen_batch import db, files, jsonl, log, storage
from xalen_batch.batches import failed_lines
from xalen_batch.config import MiB, settings
from xalen_batch.models import Batch, File
from xalen_batch.storage import marks
from xalen_batch.validation.errors import Fault
from xalen_batch.validation.file_type import UTF8_BOM

logger = log.get(__name__)

WRITTEN_AT_ONCE = 4 * MiB

INPUT_GONE = Fault(
    "file_not_found",
    "The input file of the first batch is gone, and its lines with it. Upload them again.",
    param="retry_of",
)
LINE_TOO_LONG = "The line is longer than `XALEN_MAX_LINE_BYTES` allows by now."


@dataclass(frozen=True, slots=True)
class Written:
    """An input file whose bytes are in storage, and whose row does not say so yet."""

    file_id: UUID
    size: int
    sha256: bytes

    def uncounted(self, session: Session) -> int:
        """The bytes that no quota has counted yet."""
        return self.size

    def count(self, session: Session) -> None:
        """Make the file ready, as an upload is. The caller holds the lease in its transaction."""
        files.make_ready(session, self.file_id, self.size, self.sha256)
        logger.info("file.assembled", file_id=self.file_id, bytes=self.size)


class _Unwritable(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def assemble(
    batch: Batch, *, meanwhile: Callable[[], None], extend: Callable[[], None]
) -> Written | Fault | None:
    """Write the input file of a retry into storage. None if it is ready already.

    Calls `meanwhile` with every chunk that is read, and `extend`, which extends the lease, before
    the bytes become visible; an exception of either leaves storage as it was. Called on a slot's
    thread of a worker; no transaction is open meanwhile.
    """
    with db.reading() as session:
        file = session.get_one(File, batch.input_file_id)
        first = session.get_one(Batch, batch.retry_of)
    if files.is_ready(file):
        return None

    def content() -> Iterator[bytes]:
        yield from _lines(first, batch.retry_codes or (), meanwhile)
        # A process that was frozen until its lease ended must not replace its successor's bytes.
        extend()

    try:
        size, sha256 = storage.write_digested(storage.key(file.id), content())
    except _Unwritable as error:
        return error.fault
    except FileNotFoundError:
        marks.confirm_gone(storage.key(first.input_file_id))
        return INPUT_GONE
    marks.confirm_kept(storage.key(file.id))
    return Written(file.id, size, sha256)


def _lines(first: Batch, reasons: Sequence[str], meanwhile: Callable[[], None]) -> Iterator[bytes]:
    """The lines of a batch's input that failed for these reasons, in blocks of WRITTEN_AT_ONCE."""
    numbers = failed_lines.numbers(first, reasons)
    number = next(numbers, None)
    held = bytearray()
    source = storage.chunks(storage.key(first.input_file_id))
    for block in jsonl.blocks(source, longest=settings().max_line_bytes):
        meanwhile()
        before = block.spans[0].line_no
        while number is not None and number < before + len(block.spans):
            if block.data is None:
                raise _Unwritable(Fault("line_too_long", f"Line {number}: {LINE_TOO_LONG}"))
            line = block.line(block.spans[number - before])
            held += (line.removeprefix(UTF8_BOM) if number == 1 else line) + b"\n"
            number = next(numbers, None)
        if len(held) >= WRITTEN_AT_ONCE:
            yield bytes(held)
            held.clear()
        if number is None:
            break
    if held:
        yield bytes(held)
