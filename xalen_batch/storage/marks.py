"""Store marks: whether this process and the workers see the store of their database.

The store holds the database's id in an object, its mark. A folder without the mark (another data
folder, a mount point without its disk) counts as unavailable storage: work waits for it, and an
object that is missing there does not count as lost (docs/decisions/0032).
"""

import time
from functools import cache, lru_cache
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from xalen_batch import catalog, db, log, storage
from xalen_batch.models import File, StoreMark, workers

logger = log.get(__name__)

# Seconds for which `is_here` keeps its result.
LOOK_EVERY = 1.0
# The newest stored files of a database, one of which must be in a folder before it is marked.
LOOKED_FOR = 100


class Elsewhere(OSError):
    """The storage folder is not the store of this database. One of storage.UNAVAILABLE."""


class Unplaced(Elsewhere):
    """No API process has marked the store yet."""


@cache
def identity() -> UUID:
    """The mark that the store must hold; cached, since it never changes.

    Raises Unplaced until an API process has marked the store.
    """
    with db.reading() as session:
        mark = session.execute(select(StoreMark.id, StoreMark.placed_at)).one()
    if mark.placed_at is None:
        raise Unplaced(
            "The store of this database is not marked yet: the API marks it when it starts."
        )
    id: UUID = mark.id
    return id


def place() -> None:
    """Mark the folder as this database's store, unless one is marked; then confirm the mark.

    Only API processes call it, since they write the uploads: a misconfigured worker must not mark
    its own folder. Raises Elsewhere.
    """
    try:
        confirm()
        return
    except Unplaced:
        pass
    # The folder of a new store may not exist yet; this creates it.
    storage.store()
    with db.transaction() as session:
        # NOWAIT: another process that marks the store holds the lock while it waits for the disk.
        mark = session.scalars(select(StoreMark).with_for_update(nowait=True)).one()
        if mark.placed_at is None:
            _refuse_another_store(session, mark.id)
            # Before the commit: after a crash in between, the next attempt finds this database's
            # own mark.
            storage.write(storage.MARK, [f"{mark.id}\n".encode()])
            mark.placed_at = session.scalar(select(func.now()))
            logger.info("store.marked", mark=str(mark.id), folder=str(storage.folder()))
    confirm()


def confirm() -> None:
    """Raise Elsewhere unless this process sees the store."""
    _holds(None)


def confirm_gone(key: str) -> None:
    """Raise Elsewhere unless the store has its mark and lacks the object, which is then lost."""
    if _holds(key):
        raise Elsewhere(f"The storage folder {storage.folder()} was away for a moment.")


def confirm_kept(key: str) -> None:
    """Raise Elsewhere unless the marked store holds an object that was just written.

    The store may have been unmounted during the write.
    """
    if not _holds(key):
        raise Elsewhere(f"The storage folder {storage.folder()} was away while it was written to.")


def is_here() -> bool:
    """Whether this process sees the store, checked at most once a second. Logs changes."""
    return _is_here(int(time.monotonic() / LOOK_EVERY))


def differences(session: Session) -> list[str]:
    """A sentence for each live worker with another store or another catalog than this process."""
    expected = session.execute(select(StoreMark.id, StoreMark.placed_at)).one()
    found = []
    for worker in workers.live(session):
        # Workers of older versions report neither.
        if worker.catalog is None:
            continue
        host, pid, _ = worker.id.rsplit(":", 2)
        if expected.placed_at is not None and worker.store != expected.id:
            found.append(
                f"worker {host}:{pid} does not see the store of this database; compare its"
                " XALEN_STORAGE_URL and XALEN_DATA_DIR"
            )
        if worker.catalog != catalog.fingerprint():
            found.append(
                f"worker {host}:{pid} has another catalog than this process; compare their"
                " XALEN_CATALOG"
            )
    return found


def _holds(key: str | None) -> bool:
    """Whether the store holds an object. Raises Elsewhere for a folder that is not the store."""
    expected = identity()
    try:
        found, is_there = storage.look(key)
    except OSError as error:
        raise Elsewhere(
            f"The storage folder {storage.folder()} cannot be read: {error.strerror}."
        ) from error
    if found == expected:
        return is_there
    raise Elsewhere(
        f"The storage folder {storage.folder()} is not the store of this database: {_told(found)}."
        " Mount the store there, or correct XALEN_STORAGE_URL. To go on with this folder in its"
        f" place, write {expected} into {storage.MARK} there."
    )


def _refuse_another_store(session: Session, id: UUID) -> None:
    """Raise Elsewhere if the folder lacks this database's files, or has another database's mark."""
    found, _ = storage.look(None)
    is_stored = (File.batch_id.is_(None), File.deleted_at.is_(None), File.sha256.is_not(None))
    known = session.scalars(
        select(File.id).where(*is_stored).order_by(File.id.desc()).limit(LOOKED_FOR)
    ).all()
    if known:
        if not any(storage.look(storage.key(file_id))[1] for file_id in known):
            raise Elsewhere(
                f"The storage folder {storage.folder()} holds none of the last {len(known):,} files"
                " of this database. Mount the store there, or correct XALEN_STORAGE_URL."
            )
    elif found not in (None, id):
        raise Elsewhere(
            f"The storage folder {storage.folder()} is the store of another database. Correct"
            f" XALEN_STORAGE_URL, or remove {storage.MARK} there if nothing else uses it."
        )


def _told(found: UUID | None) -> str:
    return "it holds no mark" if found is None else "it holds another database's mark"


_was_here = True


@lru_cache(maxsize=1)
def _is_here(_: int) -> bool:
    global _was_here
    found = _difference()
    now = found is None
    if now and not _was_here:
        logger.warning("store.here")
    elif found is not None and _was_here:
        # A worker of a new installation may start before the API has marked the store.
        tell = logger.warning if isinstance(found, Unplaced) else logger.error
        tell("store.elsewhere", reason=str(found))
    _was_here = now
    return now


def _difference() -> Elsewhere | None:
    try:
        confirm()
    except Elsewhere as error:
        return error
    return None
