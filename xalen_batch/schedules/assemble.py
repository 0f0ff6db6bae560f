"""Assemble: write the input file of a schedule's run, under the lease that validates its batch.

The start of the run has pinned the content, so a second attempt writes the same bytes or fails. The
file is ready once its row has size and digest. The transaction that writes them checks the lease,
and deletes the run's requests from the inbox.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy import update
from sqlalchemy.orm import Session

from xalen_batch import db, files, ids, log, storage
from xalen_batch.accounts.accounts import Owner
from xalen_batch.config import MiB
from xalen_batch.models import Batch, File, ScheduleRun
from xalen_batch.schedules import inbox, sources, start
from xalen_batch.schedules.definition import Definition
from xalen_batch.schedules.fill import Unfit, capped, rendered
from xalen_batch.schedules.templates import Moment
from xalen_batch.storage import marks
from xalen_batch.validation.errors import Fault, Faults

logger = log.get(__name__)

WRITTEN_AT_ONCE = 4 * MiB

FILE_NOT_READY = Fault(
    "file_not_ready",
    "The input file has no content: it is the input of another batch, which has not begun.",
    param="input_file_id",
)
INBOX_GONE = Fault(
    "inbox_not_found",
    "The requests of this run are not in the inbox any more. Send them again.",
    param="inbox",
)


@dataclass(frozen=True, slots=True)
class Assembled:
    """A file whose bytes are in storage, and whose row does not say so yet."""

    file_id: UUID
    run_id: UUID
    size: int
    sha256: bytes
    # Of a source: its objects, each with the line number in the file at which it begins.
    manifest: list[dict[str, Any]] | None

    def uncounted(self, session: Session) -> int:
        """The bytes that no quota has counted yet: requests of an inbox were, when they arrived."""
        return self.size - inbox.size(session, self.run_id)

    def count(self, session: Session) -> None:
        """Make the file ready, as an upload is. The caller holds the lease in its transaction."""
        files.make_ready(session, self.file_id, self.size, self.sha256)
        if self.manifest is not None:
            session.execute(
                update(ScheduleRun)
                .where(ScheduleRun.id == self.run_id)
                .values(manifest=self.manifest)
            )
        inbox.forget(session, self.run_id)
        logger.info("file.assembled", file_id=self.file_id, run_id=self.run_id, bytes=self.size)


def assemble(batch: Batch, extend: Callable[[], None]) -> Assembled | Fault | None:
    """Write the input file of a batch's run into storage. None if the file is ready already.

    Calls `extend`, which extends the lease, after every few MiB and before the bytes become
    visible; an exception of `extend` leaves storage as it was. Returns a Fault if the file cannot
    be assembled. Called on a slot's thread of a worker; no transaction is open meanwhile.
    """
    with db.transaction() as session:
        file = session.get_one(File, batch.input_file_id)
        run = None if batch.run_id is None else session.get_one(ScheduleRun, batch.run_id)
    if files.is_ready(file):
        return None
    definition = None if run is None else Definition.model_validate(run.definition)
    if run is None or definition is None or definition.input_file_id is not None:
        return FILE_NOT_READY
    manifest = None if run.manifest is None else [dict(entry) for entry in run.manifest]

    def blocks() -> Iterator[bytes]:
        content = _content(batch, run, definition, manifest or [])
        # No cap for an inbox: requests were assigned by the limit that held at the time.
        if definition.inbox is None:
            content = capped(content)
        for block in _blocks(content):
            yield block
            # After the last block too: a process that was frozen until its lease ended must not
            # replace the bytes of its successor.
            extend()

    try:
        size, sha256 = storage.write_digested(storage.key(file.id), blocks())
    except Unfit as unfit:
        return unfit.fault
    marks.confirm_kept(storage.key(file.id))
    return Assembled(file.id, run.id, size, sha256, manifest)


def traced(faults: Faults, manifest: Sequence[dict[str, Any]]) -> Faults:
    """Faults of a source's file, their messages led by the object and the line in that object."""
    # Entries have no `first_line` if the file could not be assembled.
    numbered = [entry for entry in manifest if "first_line" in entry]
    firsts = [entry["first_line"] for entry in numbered]

    def found(fault: Fault) -> Fault:
        if fault.line is None or not numbered:
            return fault
        entry = numbered[bisect_right(firsts, fault.line) - 1]
        line = fault.line - entry["first_line"] + 1
        return replace(fault, message=f"{entry['path']}:{line}: {fault.message}")

    return Faults([found(fault) for fault in faults.kept], faults.unlisted)


def _content(
    batch: Batch, run: ScheduleRun, definition: Definition, manifest: Sequence[dict[str, Any]]
) -> Iterator[bytes]:
    """The pinned content of a run's input file. Unfit if a part of it is gone or has changed.

    Adds `first_line` to each entry of the manifest.
    """
    try:
        if definition.template_file_id is not None:
            yield from _template(definition.template_file_id, start.moment(run, definition))
        elif definition.source is not None:
            line = 1
            for entry in manifest:
                entry["first_line"] = line
                for chunk in sources.chunks(
                    Owner(batch.account_id, batch.livemode), definition.source, [entry]
                ):
                    line += chunk.count(b"\n")
                    yield chunk
        else:
            yield from inbox.chunks(run.id)
    except sources.ObjectGone as gone:
        if definition.source is not None:
            sources.confirm(definition.source)
        remedy = (
            "Leave objects as they are until their batch runs; put it there again, and a later run"
            " takes it."
        )
        raise Unfit(Fault("source_changed", f"Object {gone}. {remedy}", param="source")) from None
    except inbox.RequestsGone:
        raise Unfit(INBOX_GONE) from None


def _template(public_id: str, moment: Moment) -> Iterator[bytes]:
    def refuse(fault: Fault) -> None:
        raise Unfit(fault)

    file_id = ids.parse("file", public_id)
    if file_id is None:
        return
    try:
        yield from rendered(storage.chunks(storage.key(file_id)), moment, refuse)
    except FileNotFoundError:
        marks.confirm_gone(storage.key(file_id))
        message = (
            f"The template {public_id} is gone: it was deleted. Upload it again and give the"
            " schedule its new id."
        )
        raise Unfit(Fault("file_not_found", message, param="template_file_id")) from None


def _blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks of at least WRITTEN_AT_ONCE: each write is a request to storage."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= WRITTEN_AT_ONCE:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
