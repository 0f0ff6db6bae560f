"""Workers: the worker processes, each with a heartbeat."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, ColumnElement, Text, delete, func, literal_column, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from xalen_batch.models.base import Base

# A worker sends a heartbeat each second. Without one for LIVE_FOR it does not count as alive.
LIVE_FOR = timedelta(seconds=5)
# Age of the last heartbeat from which the row is deleted.
KEPT_FOR = timedelta(minutes=1)
REMOVED_AT_ONCE = 100


class WorkerWaitReason(StrEnum):
    """The part that work waits for in a worker process."""

    BACKEND = "backend"
    STORAGE = "storage"
    DISK = "disk"
    RATE_LIMIT = "rate_limit"


@dataclass(frozen=True, slots=True)
class WorkerWait:
    """Work that waits in a worker process.

    `seconds`: how long it had waited at the row's `seen_at`; a duration, so no reader compares the
    clocks of two machines. `message`: the backend's last failure.
    """

    reason: WorkerWaitReason | str
    seconds: float
    message: str = ""
    model: str | None = None
    livemode: bool | None = None


class Worker(Base):
    """One worker process. `seen_at` is in no index, so heartbeats are HOT updates."""

    __tablename__ = "workers"
    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)

    # Host, process id and a random part: a restarted worker is another row.
    id: Mapped[str] = mapped_column(primary_key=True)
    seen_at: Mapped[datetime]
    # The store mark that it sees; null: it sees none, or the storage does not answer.
    store: Mapped[UUID | None]
    # `catalog.fingerprint` of its catalog; null: a version that does not report it.
    catalog: Mapped[str | None]
    # The price components that it charges; null: a version without this column, which charges input
    # and output.
    components: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    # Its `WorkerWait`s; null: none, or a version that does not report them.
    waits: Mapped[list[dict[str, Any]] | None]

    @property
    def waiting(self) -> list[tuple[datetime, WorkerWait]]:
        """Each wait of its work, with the time since when.

        Fields that this version does not know are left out; unknown reasons are kept.
        """
        found = []
        for told in self.waits or ():
            wait = WorkerWait(**{name: told[name] for name in told.keys() & WorkerWait.__slots__})
            found.append((self.seen_at - timedelta(seconds=wait.seconds), wait))
        return found


def seen(
    session: Session,
    worker_id: str,
    *,
    store: UUID | None = None,
    catalog: str | None = None,
    components: Sequence[str] | None = None,
    waits: Sequence[WorkerWait] = (),
) -> int:
    """Write this worker's heartbeat, with the store it sees, the price components it charges, and
    the waits of its work.

    Returns the number of live workers, this one included. The first heartbeat of a worker also
    deletes rows of workers that were killed.
    """
    now = func.clock_timestamp()
    told = {
        "seen_at": now,
        "store": store,
        "catalog": catalog,
        "components": components,
        "waits": [asdict(wait) for wait in waits] or None,
    }
    row = insert(Worker).values(id=worker_id, **told)
    is_new = session.scalar(
        # `xmax` of a row that was inserted is 0.
        row.on_conflict_do_update(
            index_elements=[Worker.id], set_={name: row.excluded[name] for name in told}
        ).returning(literal_column("xmax = 0"))
    )
    if is_new:
        _remove_old(session)
    return session.scalar(select(func.count()).where(Worker.seen_at > now - LIVE_FOR)) or 0


def live(session: Session) -> Sequence[Worker]:
    """The workers with a heartbeat within LIVE_FOR."""
    return session.scalars(select(Worker).where(is_live()).order_by(Worker.id)).all()


def is_live() -> ColumnElement[bool]:
    """Whether a worker has a heartbeat within LIVE_FOR."""
    return Worker.seen_at > func.clock_timestamp() - LIVE_FOR


def gone(session: Session, worker_id: str) -> None:
    """Delete the row of a worker that stops."""
    session.execute(delete(Worker).where(Worker.id == worker_id))


def _remove_old(session: Session) -> None:
    """Delete rows without a heartbeat for KEPT_FOR. SKIP LOCKED: no worker waits for another."""
    old = (
        select(Worker.id)
        .where(Worker.seen_at < func.clock_timestamp() - KEPT_FOR)
        .limit(REMOVED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    session.execute(
        delete(Worker).where(Worker.id.in_(old)).execution_options(synchronize_session=False)
    )
