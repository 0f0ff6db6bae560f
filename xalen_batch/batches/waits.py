"""Waits: the reason why a batch does not go on, as a sentence for its owner. Computed, not stored.

Of one batch, `of_one` also names what every batch waits for at times: validation, a limit per
minute, its turn.

The sources are the rows of the workers, into which each process writes the waits of its work every
second (models/workers.py), the catalog, and the row of the batch. A sentence names no address and
no key.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from xalen_batch import catalog
from xalen_batch.models import Batch, StoreMark, Task, Worker, tasks, workers
from xalen_batch.models.tasks import has_state
from xalen_batch.states import MAY_START, BatchStatus, TaskState

# Most models of one batch that are checked.
MOST_MODELS = 100
# Batches that are counted ahead of one that waits for validation.
MOST_AHEAD = 1_000


class Reason(StrEnum):
    EXECUTION_WINDOW = "execution_window"
    NO_WORKER = "no_worker"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    DISK_SHORT = "disk_short"
    MODEL_MISSING = "model_missing"
    BACKEND_CHANGED = "backend_changed"
    BACKEND_UNAVAILABLE = "backend_unavailable"
    VALIDATION = "validation"
    RATE_LIMIT = "rate_limit"
    TURN = "turn"


# Reasons that pass by themselves.
USUAL = frozenset({Reason.VALIDATION, Reason.RATE_LIMIT, Reason.TURN})


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a batch waits.

    `model`: the model whose lines wait; None: all lines wait. `since`: None if unknown.
    """

    reason: Reason
    message: str
    model: str | None = None
    since: datetime | None = None


def of(session: Session, batches: Sequence[Batch]) -> dict[UUID, Wait]:
    """The first wait of each batch that has one, by the batch's id.

    Runs no query if no batch is open, else two, and one more for batches of several models.
    """
    waiting = [batch for batch in batches if batch.status in MAY_START]
    if not waiting:
        return {}
    system = _System.look(session)
    found = {}
    models = _open_models(
        session, [batch for batch in waiting if batch.status == BatchStatus.IN_PROGRESS]
    )
    for batch in waiting:
        wait = next(_waits(batch, system, models.get(batch.id, ())), None)
        if wait is not None:
            found[batch.id] = wait
    return found


def of_one(session: Session, batch: Batch) -> Wait | None:
    """The first wait of a batch, also one that passes by itself.

    Runs at most four statements more than `of`, none of which grows with the batch.
    """
    if batch.status not in MAY_START:
        return None
    system = _System.look(session)
    if batch.status == BatchStatus.VALIDATING:
        return next(_waits(batch, system, ()), None) or _validation(session, batch, system)
    models = _open_models(session, [batch]).get(batch.id, [])
    wait = next(_waits(batch, system, models), None)
    if wait is not None:
        return wait
    for model in models:
        limited = _limited(batch, system, model)
        if limited is not None:
            return limited
    return _turn(session, batch, models)


def _validation(session: Session, batch: Batch, system: "_System") -> Wait:
    if batch.lease_until is not None and batch.lease_until > system.now:
        return Wait(Reason.VALIDATION, "Its input file is being read.", since=batch.created_at)
    before = select(Batch.id).where(text("batches.status = 'validating'"), Batch.id < batch.id)
    ahead = session.scalar(select(func.count()).select_from(before.limit(MOST_AHEAD).subquery()))
    others = f"{'at least ' if ahead == MOST_AHEAD else ''}{ahead:,}"
    message = "Its input file waits to be read" + (f", behind {others} more." if ahead else ".")
    return Wait(Reason.VALIDATION, message, since=batch.created_at)


def _limited(batch: Batch, system: "_System", model: str) -> Wait | None:
    """The wait for a limit per minute of the model's backend, if all live workers with it wait."""
    since = [
        begun
        for worker in system.alive
        for begun, wait in worker.waiting
        if (wait.reason, wait.model, wait.livemode)
        == (workers.WorkerWaitReason.RATE_LIMIT, model, batch.livemode)
    ]
    config = catalog.models().get(model)
    if not since or config is None:
        return None
    limits = " and ".join(
        f"{limit:,} {noun}"
        for limit, noun in (
            (config.backend.requests_per_minute, "requests"),
            (config.backend.tokens_per_minute, "tokens"),
        )
        if limit
    )
    message = f"Its lines wait for the limit of {model}: {limits} per minute."
    return Wait(Reason.RATE_LIMIT, message, model, min(since))


def _turn(session: Session, batch: Batch, models: Sequence[str]) -> Wait | None:
    """The wait of a batch of which no line is in flight, although lines are left."""
    if not models or tasks.has_any(session, batch.id, TaskState.RUNNING):
        return None
    if not tasks.has_any(session, batch.id, TaskState.PENDING):
        return None
    return Wait(
        Reason.TURN,
        "Other lines run first. Workers share their capacity among accounts by weight, and among"
        " the batches of an account; at least half of it goes to the earliest deadline.",
    )


@dataclass(frozen=True, slots=True)
class _System:
    """The live workers, the time by PostgreSQL's clock, and the store mark that each must see.

    `mark` is None before an API process has marked the store.
    """

    now: datetime
    mark: UUID | None
    alive: Sequence[Worker]

    @classmethod
    def look(cls, session: Session) -> "_System":
        rows = session.execute(_LOOK).all()
        mark, placed_at, now, _ = rows[0]
        alive = [worker for *_, worker in rows if worker is not None]
        return cls(now, None if placed_at is None else mark, alive)

    def since(self, reason: workers.WorkerWaitReason) -> datetime | None:
        """When the first live worker began to wait for this reason; None if no worker does."""
        begun = []
        for worker in self.alive:
            begun += [since for since, wait in worker.waiting if wait.reason == reason]
        return min(begun, default=None)


# The live workers, each with the store mark and the time; one row without a worker if none lives.
_LOOK = (
    select(StoreMark.id, StoreMark.placed_at, func.clock_timestamp(), Worker)
    .outerjoin(Worker, workers.is_live())
    .order_by(Worker.id)
)


def _waits(batch: Batch, system: _System, models: Sequence[str]) -> Iterator[Wait]:
    """All waits of a batch, the most general ones first."""
    if (
        batch.status == BatchStatus.IN_PROGRESS
        and batch.window_opens_at
        and system.now < batch.window_opens_at
    ):
        yield Wait(
            Reason.EXECUTION_WINDOW,
            f"Its execution window opens {batch.window_opens_at:%Y-%m-%d %H:%M} UTC.",
        )
    if not system.alive:
        yield Wait(Reason.NO_WORKER, "No worker is running. It goes on when one starts.")
    # Workers of older versions report neither store nor catalog.
    elif system.mark is not None and all(
        worker.catalog and worker.store != system.mark for worker in system.alive
    ):
        since = system.since(workers.WorkerWaitReason.STORAGE)
        yield Wait(
            Reason.STORAGE_UNAVAILABLE,
            "No worker can read the stored files. It goes on when the storage is back.",
            since=since,
        )
    elif all(
        any(wait.reason == workers.WorkerWaitReason.DISK for _, wait in worker.waiting)
        for worker in system.alive
    ):
        message = (
            "The disk of the database is nearly full, so no new line is started. It goes on when"
            " there is space again."
        )
        yield Wait(Reason.DISK_SHORT, message, since=system.since(workers.WorkerWaitReason.DISK))
    for model in models:
        yield from _of_model(batch, system, model)


def _of_model(batch: Batch, system: _System, model: str) -> Iterator[Wait]:
    """The waits of a batch's lines of one model."""
    config, agreed = catalog.models().get(model), batch.backend_of(model)
    kind = None if config is None else config.kind_in(batch.livemode)
    if config is None:
        yield Wait(
            Reason.MODEL_MISSING,
            f"The catalog no longer has the model {model}. Its lines run when the operator puts it"
            " back; until the batch expires they wait.",
            model,
        )
    elif kind != agreed:
        yield Wait(
            Reason.BACKEND_CHANGED,
            f"The batch was created when {model} was answered by {_named(agreed)}; the catalog has"
            f" {_named(kind)} now. Cancel the batch and submit it again, or have the operator"
            " change the catalog back.",
            model,
        )
    reported = []
    lane = (workers.WorkerWaitReason.BACKEND, model, batch.livemode)
    for worker in system.alive:
        for since, wait in worker.waiting:
            if (wait.reason, wait.model, wait.livemode) == lane:
                reported.append((since, wait.message))
    if reported:
        since, last = min(reported)
        message = (
            f"No line of {model} was answered lately. {last} Lines are sent again until the backend"
            " answers or the batch expires."
        )
        yield Wait(Reason.BACKEND_UNAVAILABLE, message, model, since)


def _named(kind: str | None) -> str:
    return {"openai": "a model server", "simulated": "the simulated model"}.get(
        kind or "", "no backend"
    )


def _open_models(session: Session, batches: Sequence[Batch]) -> dict[UUID, list[str]]:
    """The models of the lines that have not ended, by the batch's id.

    Queries only batches of several models: the row of any other batch names its model.
    """
    found = {batch.id: [batch.model] for batch in batches if batch.model is not None}
    several = [batch.id for batch in batches if batch.model is None]
    if several:
        is_open = (Task.batch_id.in_(several), has_state(TaskState.PENDING, TaskState.RUNNING))
        for batch_id, model in session.execute(
            select(Task.batch_id, Task.model).where(*is_open).distinct().order_by(Task.model)
        ):
            models = found.setdefault(batch_id, [])
            if len(models) < MOST_MODELS:
                models.append(model)
    return found
