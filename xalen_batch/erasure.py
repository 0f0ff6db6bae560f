"""Erasure: remove the answers that a deleted output file showed, a bounded number of lines in a
transaction.

The file's row says deleted from the first transaction on, so nobody can read what is still to be
erased. The row in `erasures` keeps the position: a crash costs the current step only.
"""

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.orm import Session

from xalen_batch.models import Erasure, File, Result
from xalen_batch.models.files import FilePart

# An answer may take a MiB, stored in some 500 pieces, and each of them is a row to delete.
LINES_AT_ONCE = 1_000


def begin(session: Session, file: File) -> None:
    """Erase the first lines of an output file.

    The sweep erases the others (`pipeline/sweeps.py`).
    """
    erasure = Erasure(file_id=file.id, line_no=0)
    session.add(erasure)
    session.flush()
    _step(session, erasure, file)


def go_on(session: Session) -> bool:
    """Erase the next lines of one file. False: none is left, or other sessions are at it.

    SKIP LOCKED: any number of sweeps may erase at once, each another file.
    """
    erasure = session.scalars(
        select(Erasure).order_by(Erasure.file_id).limit(1).with_for_update(skip_locked=True)
    ).one_or_none()
    if erasure is None:
        return False
    _step(session, erasure, session.get_one(File, erasure.file_id))
    return True


def _step(session: Session, erasure: Erasure, file: File) -> None:
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
