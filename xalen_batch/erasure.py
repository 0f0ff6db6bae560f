"""Erasure: remove the answers of a deleted output file, LINES_AT_ONCE lines in a transaction.

With the first of a batch's files go the failed attempts at its lines.

The first transaction marks the file as deleted, so the answers that remain cannot be read. The row
in `erasures` keeps the position: after a crash only the current step is repeated.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, select, text, update
from sqlalchemy.orm import Session

from xalen_batch.models import Erasure, File, Result, line_attempts
from xalen_batch.models.files import FilePart

# An answer of a MiB is stored as some 500 TOAST rows, each of which is deleted.
LINES_AT_ONCE = 1_000


def begin(session: Session, file: File) -> None:
    """Erase the first lines of an output file. A sweep erases the others (`pipeline/sweeps.py`)."""
    erasure = Erasure(file_id=file.id, line_no=0)
    session.add(erasure)
    session.flush()
    _step(session, erasure, file)


def begin_later(session: Session, file_ids: Sequence[UUID]) -> None:
    """Let a sweep erase output files; those without any row left have nothing to erase."""
    session.execute(_BEGIN_LATER, {"ids": list(file_ids)})


# The order makes it a look-up by the primary key, whatever the statistics say.
_BEGIN_LATER = text("""
    INSERT INTO erasures (file_id, line_no)
    SELECT files.id, 0 FROM files CROSS JOIN LATERAL (
        (SELECT FROM results WHERE results.batch_id = files.batch_id ORDER BY line_no LIMIT 1)
        UNION ALL
        (SELECT FROM line_attempts AS one WHERE one.batch_id = files.batch_id LIMIT 1)
        UNION ALL
        (SELECT FROM lost_leases AS one WHERE one.batch_id = files.batch_id LIMIT 1)
        LIMIT 1
    ) AS first
    WHERE files.id = ANY(:ids)
""")


def go_on(session: Session) -> bool:
    """Erase the next lines of one file. False: no file is left, or other sessions erase them.

    SKIP LOCKED: concurrent sweeps erase different files.
    """
    erasure = session.scalars(
        select(Erasure).order_by(Erasure.file_id).limit(1).with_for_update(skip_locked=True)
    ).one_or_none()
    if erasure is None:
        return False
    _step(session, erasure, session.get_one(File, erasure.file_id))
    return True


def _step(session: Session, erasure: Erasure, file: File) -> None:
    assert file.batch_id is not None
    if line_attempts.erase(session, file.batch_id, LINES_AT_ONCE):
        return
    is_next = (Result.batch_id == file.batch_id, Result.line_no > erasure.line_no)
    lines = (
        select(Result.line_no)
        .where(*is_next)
        .order_by(Result.line_no)
        .limit(LINES_AT_ONCE)
        .subquery()
    )
    count, last = session.execute(select(func.count(), func.max(lines.c.line_no))).one()
    if count:
        session.execute(
            update(Result)
            .where(*is_next, Result.line_no <= last, _shown(file), Result.body.is_not(None))
            .values(body=None)
            .execution_options(synchronize_session=False)
        )
    if count < LINES_AT_ONCE:
        session.execute(
            delete(Erasure)
            .where(Erasure.file_id == file.id)
            .execution_options(synchronize_session=False)
        )
        session.expunge(erasure)
    else:
        erasure.line_no = last
        session.flush()


def _shown(file: File) -> ColumnElement[bool]:
    is_answered = Result.status_code.is_not(None) & (Result.status_code < 300)
    return is_answered if file.part == FilePart.OUTPUT else ~is_answered
