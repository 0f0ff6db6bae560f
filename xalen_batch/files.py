"""Files of an owner: uploads, and the output files of batches."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from enum import StrEnum
from uuid import UUID

import sqlalchemy
from sqlalchemy import (
    ARRAY,
    BindParameter,
    ColumnElement,
    Interval,
    Select,
    Text,
    Uuid,
    any_,
    bindparam,
    cast,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session, aliased

from xalen_batch import erasure, ids, paging, storage
from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Owner
from xalen_batch.accounts.quotas import Quota
from xalen_batch.config import settings
from xalen_batch.errors import QUOTED_CHARS, FileBusy, InvalidRequest, NotFound
from xalen_batch.models import Batch, File, InboxRequest, Schedule, ScheduleRun
from xalen_batch.models.base import table_of
from xalen_batch.models.files import FilePart
from xalen_batch.paging import Order, Page
from xalen_batch.states import ENDING, OPEN_RUNS, TERMINAL, BatchStatus, RunState
from xalen_batch.storage import marks


class Purpose(StrEnum):
    """OpenAI's purposes. Files of any purpose are kept; only those of `batch` are input files."""

    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"
    ASSISTANTS = "assistants"
    EVALS = "evals"
    FINE_TUNE = "fine-tune"
    USER_DATA = "user_data"
    VISION = "vision"
    # Ours: the line of a queued call. No list shows it.
    CALL = "call"


UPLOAD_PURPOSES = frozenset(Purpose) - {Purpose.BATCH_OUTPUT, Purpose.CALL}


def create(
    session: Session,
    owner: Owner,
    *,
    id: UUID,
    purpose: str,
    filename: str,
    size: int,
    sha256: bytes | None,
    expires_after: int | None = None,
) -> File:
    """Create the row of an upload whose bytes are already stored.

    Without `sha256`: the input file of a schedule's run, which is assembled later. `expires_after`:
    lifetime in seconds; batch inputs have a default, other files are kept. Raises TooManyRequests
    if a quota is used up.
    """
    asked = {Quota.FILES: 1}
    if size:
        asked[Quota.STORAGE_BYTES] = size
    quotas.admit(session, owner, asked)
    life = expires_after
    if life is None and purpose in (Purpose.BATCH, Purpose.CALL):
        life = settings().file_retention
    row = {
        "id": id,
        "account_id": owner.account_id,
        "livemode": owner.livemode,
        "purpose": purpose,
        "filename": filename,
        "bytes": size,
        "sha256": sha256,
        # Null if there is no lifetime.
        "life": None if life is None else timedelta(seconds=life),
    }
    file: File = session.scalars(_INSERT, row).one()
    return file


# Built once, since building a statement takes longer than running it.
_INSERT = select(File).from_statement(
    insert(table_of(File))
    .values(expires_at=func.now() + bindparam("life", type_=Interval))
    .returning(*table_of(File).columns)
)


def get(session: Session, owner: Owner, public_id: str) -> File:
    """A file of this owner. Raises NotFound, also for one that was deleted or has expired."""
    return _one(session, owner, public_id, _GET)


def is_ready(file: File) -> bool:
    """Whether the file has its content.

    The input of a schedule's run is assembled when its batch is validated.
    """
    return file.sha256 is not None or file.batch_id is not None


def make_ready(session: Session, file_id: UUID, size: int, sha256: bytes) -> None:
    """Give a file the size and digest of its content, which is in storage."""
    session.execute(
        update(File)
        .where(File.id == file_id)
        .values(size=size, sha256=sha256)
        .execution_options(synchronize_session=False)
    )


def refuse_if_not_ready(session: Session, file: File, *, param: str) -> None:
    """Raise InvalidRequest for a file that has no content yet."""
    if is_ready(file):
        return
    batch = session.scalars(
        select(Batch).where(Batch.input_file_id == file.id).order_by(Batch.id).limit(1)
    ).one_or_none()
    is_over = batch is None or batch.status in TERMINAL
    when = (
        "Its batch ended before that: it never will be."
        if is_over
        else "Try again when its batch is in_progress."
    )
    raise InvalidRequest(
        f"File {ids.render('file', file.id)} is the input of a schedule's run or of a retry, and is"
        f" not put together yet. {when}",
        param=param,
        code="file_not_ready",
    )


def lines(session: Session, file: File) -> int | None:
    """The lines of an output or error file; None: of an upload, which nobody has counted."""
    if file.batch_id is None:
        return None
    batch = session.get_one(Batch, file.batch_id)
    is_output = file.part == FilePart.OUTPUT
    return batch.completed if is_output else batch.total - batch.completed


def lock(session: Session, owner: Owner, public_id: str) -> File:
    """As `get`, with a lock that prevents deletion until this transaction ends."""
    return _one(session, owner, public_id, _GET_LOCKED)


def page(
    session: Session,
    owner: Owner,
    *,
    purpose: str | None,
    limit: int,
    order: Order,
    after: str | None,
) -> Page[File]:
    """A page of the owner's files by creation."""
    rows = _visible(owner.account_id, owner.livemode)
    rows = rows.where(File.purpose != Purpose.CALL if purpose is None else File.purpose == purpose)
    return paging.page(session, rows, File.id, "file", limit=limit, order=order, after=after)


def names(session: Session, file_ids: Iterable[UUID]) -> dict[UUID, str]:
    """The names of files by their ids, also of deleted ones; empty names once they are erased."""
    rows = session.execute(select(File.id, File.filename).where(File.id.in_(list(file_ids))))
    return {row.id: row.filename for row in rows}


def delete(session: Session, owner: Owner, public_id: str) -> File:
    """Delete a file: erase its bytes or, of an output file, the answers. Charges are kept.

    Raises InvalidRequest while a schedule or an open batch reads the file, and FileBusy if that
    batch is about to end.
    """
    file = _one(session, owner, public_id, _GET_FOR_UPDATE)
    schedule = session.scalars(
        select(Schedule).where(Schedule.file_id == file.id, Schedule.deleted_at.is_(None)).limit(1)
    ).one_or_none()
    if schedule is not None:
        name = f"{ids.render('sched', schedule.id)} ({schedule.name[:QUOTED_CHARS]!r})"
        raise InvalidRequest(
            f"File {public_id} is what schedule {name} runs. Delete the schedule or give it another"
            " file, then delete the file.",
            param="file_id",
            code="file_in_use",
        )
    run_id = session.scalar(_starting().where(_named(ids.render("file", file.id))).limit(1))
    if run_id is not None:
        raise InvalidRequest(
            f"File {public_id} is what {ids.render('run', run_id)} of a schedule reads, which has"
            " not started. Wait until its batch is in_progress, or cancel it, then delete the"
            " file.",
            param="file_id",
            code="file_in_use",
        )
    _refuse_if_read(session, file)
    erase(session, file)
    return file


def _refuse_if_read(session: Session, file: File) -> None:
    """Raise InvalidRequest if an open batch reads the file; FileBusy if that batch is ending.

    A batch that is ending still reads the custom ids of its lines that were not run.
    """
    reading = select(Batch.id, Batch.status).where(
        Batch.input_file_id == file.id, Batch.status.not_in(TERMINAL)
    )
    # A batch that is not ending comes first.
    found = session.execute(reading.order_by(Batch.status.in_(ENDING)).limit(1)).one_or_none()
    if found is None:
        found = session.execute(retried().where(_RETRIED.input_file_id == file.id)).first()
    if found is None:
        return
    read = (
        f"File {ids.render('file', file.id)} is the input of batch {ids.render('batch', found.id)},"
        " which"
    )
    if found.status in ENDING:
        raise FileBusy(
            f"{read} is {found.status} and reads it until it ends. Send the request again in a few"
            " seconds.",
            param="file_id",
        )
    raise InvalidRequest(
        f"{read} has not ended. Cancel the batch or wait for its end, then delete the file.",
        param="file_id",
        code="file_in_use",
    )


_RETRIED = aliased(Batch)


def retried() -> Select[UUID, str]:
    """Retries that have not read the input of the batch whose lines they run again (`_RETRIED`)."""
    return (
        select(Batch.id, Batch.status)
        .join(_RETRIED, Batch.retry_of == _RETRIED.id)
        .where(Batch.status == BatchStatus.VALIDATING)
    )


def is_read() -> ColumnElement[bool]:
    """Whether an open batch reads the file, as its input or for the lines that it retries."""
    reading = select(Batch.id).where(Batch.input_file_id == File.id, Batch.status.not_in(TERMINAL))
    return or_(reading.exists(), retried().where(_RETRIED.input_file_id == File.id).exists())


def erase(session: Session, file: File) -> None:
    """Delete a file whose row the caller has locked.

    Of a large output file, a sweep erases most answers later.
    """
    _erase_contents(session, [file])
    if file.batch_id is not None:
        erasure.begin(session, file)
    file.deleted_at = session.scalar(select(func.now()))
    session.flush()


def erase_all(session: Session, found: Sequence[File]) -> None:
    """Delete files whose rows the caller has locked. A sweep erases all answers later."""
    _erase_contents(session, found)
    erasure.begin_later(session, [file.id for file in found if file.batch_id is not None])
    by_owner: dict[tuple[UUID, bool], list[UUID]] = {}
    for file in found:
        by_owner.setdefault((file.account_id, file.livemode), []).append(file.id)
    if by_owner:
        # Account by account, since the commit locks the tallies in the order of these updates. The
        # driver sends them all at once.
        session.execute(_DELETE, [{"own": own} for _, own in sorted(by_owner.items())])


_DELETE = (
    update(table_of(File))
    .where(table_of(File).c.id == any_(bindparam("own", type_=ARRAY(Uuid))))
    .values(deleted_at=func.now())
)


def _erase_contents(session: Session, found: Sequence[File]) -> None:
    """Delete the objects of files, and the inbox requests of those that are not assembled yet."""
    unread = [file.id for file in found if not is_ready(file)]
    if unread:
        run = select(Batch.run_id).where(Batch.input_file_id.in_(unread))
        session.execute(
            sqlalchemy.delete(InboxRequest)
            .where(InboxRequest.run_id.in_(run))
            .execution_options(synchronize_session=False)
        )
    keys = [
        storage.key(file.id) if file.batch_id is None else storage.output_key(file.id)
        for file in found
        if file.batch_id is None or file.sha256 is not None
    ]
    if keys:
        # Before the commit: if the commit fails, the rows still exist, and the files can be deleted
        # again. Without the store the bytes would stay, so its mark is checked first.
        marks.confirm()
    for key in keys:
        storage.delete(key)


def has_schedule() -> ColumnElement[bool]:
    """Whether a schedule, or a run that has not read its input yet, names the file.

    Such a file is not deleted and does not expire. A run keeps the definition that its schedule had
    when the run was created.
    """
    schedules = select(Schedule.id).where(
        Schedule.file_id == File.id, Schedule.deleted_at.is_(None)
    )
    public_id = func.concat("file-", func.replace(cast(File.id, Text), "-", ""))
    return or_(schedules.exists(), _starting().where(_named(public_id)).exists())


def _starting() -> Select[UUID]:
    """Ids of runs that have not read their input: they wait, or their batch is validating."""
    return (
        select(ScheduleRun.id)
        .outerjoin(Batch, Batch.run_id == ScheduleRun.id)
        .where(
            ScheduleRun.state.in_(OPEN_RUNS),
            or_(ScheduleRun.state == RunState.WAITING, Batch.status == BatchStatus.VALIDATING),
        )
    )


def _named(public_id: str | ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a run's definition names the file with this public id."""
    return or_(
        *(
            ScheduleRun.definition[name].astext == public_id
            for name in ("input_file_id", "template_file_id")
        )
    )


def _visible(
    account_id: UUID | BindParameter[UUID], livemode: bool | BindParameter[bool]
) -> Select[File]:
    return select(File).where(
        File.account_id == account_id,
        File.livemode == livemode,
        File.deleted_at.is_(None),
        # An expired file is invisible at once, however late the sweep deletes it.
        or_(File.expires_at.is_(None), File.expires_at > func.now(), has_schedule()),
    )


_GET = _visible(bindparam("account_id"), bindparam("livemode")).where(File.id == bindparam("id"))
_GET_LOCKED = _GET.with_for_update(read=True, key_share=True)
_GET_FOR_UPDATE = _GET.with_for_update()


def _one(session: Session, owner: Owner, public_id: str, rows: Select[File]) -> File:
    id = ids.parse("file", public_id)
    file = None
    if id is not None:
        owned = {"id": id, "account_id": owner.account_id, "livemode": owner.livemode}
        file = session.scalars(rows, owned).one_or_none()
    if file is None:
        raise NotFound(f"No such File object: {public_id[:QUOTED_CHARS]}", param="file_id")
    return file
