"""Workers: the worker processes that are alive, as the database saw them last."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, literal_column, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from xalen_batch.models.base import Base

# A worker says every second that it is there; one that has not for so long counts no more.
LIVE_FOR = timedelta(seconds=5)
# And its row goes.
KEPT_FOR = timedelta(minutes=1)
REMOVED_AT_ONCE = 100


class Reason(StrEnum):
    """What work can wait for in a worker process."""

    BACKEND = "backend"
    STORAGE = "storage"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Wait:
    """`seconds`: for how long, at the row's `seen_at`; so no reader compares two clocks.

    `message`: what the backend did last.
    """

    reason: Reason | str
    seconds: float
    message: str = ""
    model: str | None = None
    livemode: bool | None = None


class Worker(Base):
    """`seen_at` is in no index, and there is room on the page: a row that is renewed every second
    moves in place (HOT).
    """

    __tablename__ = "workers"
    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)

    # Of one process: whoever starts again is another.
    id: Mapped[str] = mapped_column(primary_key=True)
    seen_at: Mapped[datetime]
    # The mark of the store that it sees; null: none, or not this second.
    store: Mapped[UUID | None]
    # What its catalog comes to (`catalog.fingerprint`); null: a version that does not tell.
    catalog: Mapped[str | None]
    # Its `Wait`s; null: none, or a version that does not tell.
    waits: Mapped[list[dict[str, Any]] | None]

    @property
    def waiting(self) -> list[tuple[datetime, Wait]]:
        """What work waits for there, and since when.

        A newer version may give fields and reasons that are unknown here.
        """
        found = [
            Wait(**{name: told[name] for name in told.keys() & Wait.__slots__})
            for told in self.waits or ()
        ]
        return [(self.seen_at - timedelta(seconds=wait.seconds), wait) for wait in found]


def seen(
    session: Session,
    worker_id: str,
    *,
    store: UUID | None = None,
    catalog: str | None = None,
    waits: Sequence[Wait] = (),
) -> int:
    """Note that this worker process is alive, what it sees and what its work waits for.

    Returns how many are alive, itself included: seen within the last five seconds.

    Rows of workers that were killed go here too: never one that another session has locked, so
    nobody waits for anybody.
    """
    now = func.clock_timestamp()
    told = {
        "seen_at": now,
        "store": store,
        "catalog": catalog,
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
    """The worker processes that were seen within the last five seconds."""
    return session.scalars(
        select(Worker).where(Worker.seen_at > func.clock_timestamp() - LIVE_FOR).order_by(Worker.id)
    ).all()


def gone(session: Session, worker_id: str) -> None:
    """Count a worker process that stops no longer."""
    session.execute(delete(Worker).where(Worker.id == worker_id))


def _remove_old(session: Session) -> None:
    """Whenever a worker starts, which is as often as rows are made."""
    old = (
        select(Worker.id)
        .where(Worker.seen_at < func.clock_timestamp() - KEPT_FOR)
        .limit(REMOVED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    session.execute(
        delete(Worker).where(Worker.id.in_(old)).execution_options(synchronize_session=False)
    )
