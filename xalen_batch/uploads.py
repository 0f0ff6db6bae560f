"""Uploads in parts: a file that arrives in several requests, and is joined at the end.

Each part is an object of its own, so parts may arrive at the same time and in any order. Completing
an upload reads each part once, and writes it into the file. It holds an advisory lock of the upload
meanwhile, which ends with its transaction, however the process ends (docs/decisions/0062).
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Select, delete, func, select, tuple_, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from xalen_batch import db, disk, files, ids, storage
from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Owner
from xalen_batch.accounts.quotas import Quota
from xalen_batch.config import MiB, settings
from xalen_batch.errors import QUOTED_CHARS, InvalidRequest, NotFound, UploadBusy
from xalen_batch.models import File, Upload, UploadPart
from xalen_batch.states import UploadStatus
from xalen_batch.storage import marks

LIFE = timedelta(hours=1)
# How long the row of an upload is kept once it has expired.
KEPT = timedelta(days=7)
MOST_PART_BYTES = 64 * MiB
MOST_PARTS = 10_000
# Parts of an upload with the content of another part that count no bytes: a client whose answer
# was lost has sent its part again.
MOST_REPEATS = 4
# First half of the key of an upload's advisory lock; the second half is a hash of its id.
LOCK = 7261960
# Seconds between two statements while parts are joined. PostgreSQL ends a transaction that rests
# for a minute.
PING_EVERY = 10.0
PARTS_AT_ONCE = 1_000
UPLOADS_AT_ONCE = 1_000


class Completed(NamedTuple):
    upload: Upload
    file: File


def create(
    session: Session,
    owner: Owner,
    *,
    size: int,
    purpose: str,
    filename: str,
    mime_type: str,
    expires_after: int | None = None,
) -> Upload:
    """Create a pending upload of `size` bytes, which count in the quotas from now on.

    `expires_after`: lifetime of the file in seconds. Raises InvalidRequest for a size that is out
    of bounds, TooManyRequests if a quota is used up, StorageFull while a disk is short of space.
    """
    disk.refuse_if_full()
    most = min(settings().max_upload_bytes, MOST_PART_BYTES * MOST_PARTS)
    if not 0 < size <= most:
        raise InvalidRequest(
            f"Invalid `bytes`: {size:,}. Send the size of the file, from 1 to {most:,} bytes.",
            param="bytes",
        )
    quotas.admit(
        session, owner, {Quota.PENDING_UPLOADS: 1, Quota.FILES: 1, Quota.STORAGE_BYTES: size}
    )
    upload = Upload(
        id=ids.new(),
        account_id=owner.account_id,
        livemode=owner.livemode,
        purpose=purpose,
        filename=filename,
        mime_type=mime_type,
        size=size,
        expires_after=expires_after,
        expires_at=func.now() + LIFE,
    )
    session.add(upload)
    session.flush()
    return upload


def get(session: Session, owner: Owner, public_id: str) -> Upload:
    """An upload of this owner. Raises NotFound."""
    return _one(session, owner, public_id, select(Upload))


def status(session: Session, upload: Upload) -> UploadStatus:
    """The status of an upload; a pending one expires at once, however late the sweep comes."""
    if upload.status == UploadStatus.PENDING and upload.expires_at <= db.now(session):
        return UploadStatus.EXPIRED
    return UploadStatus(upload.status)


def parts(session: Session, upload: Upload) -> Sequence[UploadPart]:
    """The stored parts of an upload, in the order of their arrival. An ended upload has none."""
    if upload.status != UploadStatus.PENDING:
        return []
    return session.scalars(
        select(UploadPart).where(UploadPart.upload_id == upload.id).order_by(UploadPart.id)
    ).all()


def refuse_part(session: Session, owner: Owner, public_id: str, *, least: int) -> None:
    """Raise the error of a part of at least `least` bytes before any of them is read."""
    upload = get(session, owner, public_id)
    _refuse_unless_pending(session, upload)
    if least > upload.size:
        raise _too_much(upload)


def add_part(
    session: Session, owner: Owner, public_id: str, *, id: UUID, size: int, sha256: bytes
) -> UploadPart:
    """Create the row of a part whose bytes are stored.

    Raises InvalidRequest if the upload is not pending, or would have more parts or bytes than it
    may; UploadBusy while it is completed or cancelled.
    """
    upload = get(session, owner, public_id)
    _lock(session, upload.id, is_shared=True)
    session.refresh(upload, with_for_update=True)
    _refuse_unless_pending(session, upload)
    if upload.parts >= MOST_PARTS:
        raise InvalidRequest(
            f"Upload {public_id} has {MOST_PARTS:,} parts, the most. Cancel it, and upload the file"
            f" in larger parts, of at most {MOST_PART_BYTES:,} bytes."
        )
    same = select(UploadPart.id).where(
        UploadPart.upload_id == upload.id, UploadPart.sha256 == sha256, UploadPart.size == size
    )
    is_repeat = upload.repeats < MOST_REPEATS and session.scalar(select(same.exists()))
    if is_repeat:
        upload.repeats += 1
    elif upload.received + size > upload.size:
        raise _too_much(upload)
    else:
        upload.received += size
    upload.parts += 1
    part = UploadPart(id=id, upload_id=upload.id, size=size, sha256=sha256)
    session.add(part)
    session.flush()
    return part


def complete(owner: Owner, public_id: str, part_ids: Sequence[str], md5: str | None) -> Completed:
    """Join parts to a file, in this order. Repeated with the same ids, it has the same result.

    In a transaction of its own, which lasts as long as the disk takes. Raises InvalidRequest, and
    leaves the upload as it is, if the parts are not those of the file; UploadBusy while the upload
    is changed by another request.
    """
    disk.refuse_if_full()
    file_id = ids.new()
    try:
        with db.transaction() as session:
            completed = _complete(session, owner, public_id, part_ids, md5, file_id)
    except OperationalError:
        # The commit may have succeeded. If not, the sweep removes the bytes.
        raise
    except Exception:
        storage.delete(storage.key(file_id))
        raise
    return completed


def _complete(
    session: Session,
    owner: Owner,
    public_id: str,
    part_ids: Sequence[str],
    md5: str | None,
    file_id: UUID,
) -> Completed:
    upload = get(session, owner, public_id)
    _lock(session, upload.id)
    session.refresh(upload)
    order = hashlib.sha256("\n".join(part_ids).encode()).digest()
    if upload.status == UploadStatus.COMPLETED and upload.order_sha256 == order:
        return Completed(upload, session.get_one(File, upload.file_id))
    _refuse_unless_pending(session, upload)
    found = _ordered(session, upload, part_ids)
    size = sum(part.size for part in found)
    if size != upload.size:
        raise InvalidRequest(
            f"The parts of `part_ids` have {size:,} bytes, but the upload was created with"
            f" {upload.size:,}. Name all parts of the file.",
            param="part_ids",
        )
    sha256 = _join(session, upload, found, file_id, md5)
    # The locks of the account and of its tallies, now that the slow work is done.
    quotas.lock(session, owner)
    if not upload.end(session, UploadStatus.COMPLETED, order_sha256=order):
        raise UploadBusy(_BUSY.format(ids.render("upload", upload.id)))
    file = files.create(
        session,
        owner,
        id=file_id,
        purpose=upload.purpose,
        filename=upload.filename,
        size=size,
        sha256=sha256,
        expires_after=upload.expires_after,
    )
    upload.file_id = file.id
    session.flush()
    return Completed(upload, file)


def _ordered(session: Session, upload: Upload, part_ids: Sequence[str]) -> list[UploadPart]:
    """The parts of these ids in their order. Raises InvalidRequest for unknown or doubled ones."""
    stored = {part.id: part for part in parts(session, upload)}
    found: dict[UUID, UploadPart] = {}
    for place, public_id in enumerate(part_ids):
        id = ids.parse("part", public_id)
        param = f"part_ids[{place}]"
        if id is None or id not in stored:
            raise InvalidRequest(
                f"{param}: {public_id[:QUOTED_CHARS]!r} is not a part of upload"
                f" {ids.render('upload', upload.id)}. Send the ids of its parts, in the order of"
                " the file.",
                param=param,
            )
        if id in found:
            raise InvalidRequest(
                f"{param}: part {public_id} is named twice. Send the id of each part once.",
                param=param,
            )
        found[id] = stored[id]
    return list(found.values())


def _join(
    session: Session, upload: Upload, found: Sequence[UploadPart], file_id: UUID, md5: str | None
) -> bytes:
    """Write the parts as the object of a file; its SHA-256. InvalidRequest if the MD5 differs."""
    sha256 = hashlib.sha256()
    # MD5 proves nothing here against an attacker: the client chose the content.
    said = None if md5 is None else hashlib.md5(usedforsecurity=False)
    pinged = time.monotonic()

    def content() -> Iterator[bytes]:
        nonlocal pinged
        for part in found:
            for chunk in storage.chunks(storage.part_key(part.id), 0, part.size):
                sha256.update(chunk)
                if said is not None:
                    said.update(chunk)
                yield chunk
                if time.monotonic() - pinged > PING_EVERY:
                    disk.refuse_if_full()
                    session.execute(select(1))
                    pinged = time.monotonic()

    marks.confirm()
    storage.write(storage.key(file_id), content())
    marks.confirm_kept(storage.key(file_id))
    if md5 is not None and said is not None and said.hexdigest() != md5.lower():
        raise InvalidRequest(
            f"The file has the MD5 {said.hexdigest()}, not {md5[:QUOTED_CHARS]!r}. A part is"
            f" damaged or in another place: upload it again to {ids.render('upload', upload.id)},"
            " and name the parts in the order of the file.",
            param="md5",
            code="md5_mismatch",
        )
    return sha256.digest()


def cancel(session: Session, owner: Owner, public_id: str) -> Upload:
    """Cancel a pending upload; a cancelled one stays so.

    Raises InvalidRequest for an upload that ended otherwise, UploadBusy while it is completed.
    """
    upload = get(session, owner, public_id)
    _lock(session, upload.id)
    session.refresh(upload)
    if upload.status == UploadStatus.CANCELLED:
        return upload
    _refuse_unless_pending(session, upload)
    quotas.lock(session, owner)
    upload.end(session, UploadStatus.CANCELLED)
    return upload


def clear(upload_id: UUID) -> None:
    """Delete the parts of an ended upload: objects first, so that a crash leaves rows to go by."""
    marks.confirm()
    of_upload = UploadPart.upload_id == upload_id
    while True:
        with db.reading() as session:
            found = session.scalars(
                select(UploadPart.id).where(of_upload).limit(PARTS_AT_ONCE)
            ).all()
        if not found:
            break
        for part_id in found:
            storage.delete(storage.part_key(part_id))
        with db.transaction() as session:
            session.execute(delete(UploadPart).where(UploadPart.id.in_(found)))
    with db.transaction() as session:
        session.execute(update(Upload).where(Upload.id == upload_id).values(is_cleared=True))


def over(session: Session, after: tuple[datetime, UUID] | None) -> list[tuple[datetime, UUID]]:
    """Uploads whose time is over and whose parts are stored: the next in order of that time."""
    rows = select(Upload.expires_at, Upload.id).where(
        ~Upload.is_cleared, Upload.expires_at <= func.now()
    )
    if after is not None:
        rows = rows.where(tuple_(Upload.expires_at, Upload.id) > after)
    rows = rows.order_by(Upload.expires_at, Upload.id).limit(UPLOADS_AT_ONCE)
    return [(expires_at, id) for expires_at, id in session.execute(rows)]


def expire(upload_id: UUID) -> None:
    """End an upload whose time is over, and delete its parts. Nothing if it was forgotten.

    Raises UploadBusy while it is joined.
    """
    with db.transaction() as session:
        _lock(session, upload_id)
        # Under the row's lock the sweep of another worker cannot forget it meanwhile.
        upload = session.get(Upload, upload_id, with_for_update=True)
        if upload is None:
            return
        upload.end(session, UploadStatus.EXPIRED)
    clear(upload_id)


def forget(session: Session) -> int:
    """Delete rows of uploads that have ended long ago; the number of these, 0 if none is left."""
    old = (
        select(Upload.id)
        .where(Upload.is_cleared, Upload.expires_at < func.now() - KEPT)
        .limit(UPLOADS_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    gone = session.scalars(
        delete(Upload)
        .where(Upload.id.in_(old))
        .returning(Upload.id)
        .execution_options(synchronize_session=False)
    ).all()
    return len(gone)


_BUSY = "Another request changes upload {} at this moment. Send this one again in a few seconds."


def _lock(session: Session, upload_id: UUID, *, is_shared: bool = False) -> None:
    """Lock an upload until this transaction ends, shared among its parts. Raises UploadBusy."""
    take = func.pg_try_advisory_xact_lock_shared if is_shared else func.pg_try_advisory_xact_lock
    if not session.scalar(select(take(LOCK, func.hashtext(upload_id.hex)))):
        raise UploadBusy(_BUSY.format(ids.render("upload", upload_id)))


def _refuse_unless_pending(session: Session, upload: Upload) -> None:
    now = status(session, upload)
    if now is not UploadStatus.PENDING:
        raise InvalidRequest(
            f"Upload {ids.render('upload', upload.id)} is {now}. Create a new upload for the file.",
            code="upload_not_pending",
        )


def _too_much(upload: Upload) -> InvalidRequest:
    return InvalidRequest(
        f"Upload {ids.render('upload', upload.id)} was created with {upload.size:,} bytes, of which"
        f" {upload.received:,} are stored, and this part has more than the rest. Create the upload"
        " with the size of the file.",
        param="data",
        code="upload_too_large",
    )


def _one(session: Session, owner: Owner, public_id: str, rows: Select[Upload]) -> Upload:
    id = ids.parse("upload", public_id)
    upload = None
    if id is not None:
        upload = session.scalars(
            rows.where(
                Upload.id == id,
                Upload.account_id == owner.account_id,
                Upload.livemode == owner.livemode,
            )
        ).one_or_none()
    if upload is None:
        raise NotFound(f"No such Upload object: {public_id[:QUOTED_CHARS]}", param="upload_id")
    return upload
