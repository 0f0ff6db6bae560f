"""Batches of an owner: create, get, list, cancel, and their progress."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

from sqlalchemy import Interval, bindparam, case, func, insert, select
from sqlalchemy.orm import Session

from xalen_batch import catalog, db, disk, files, ids, log, windows
from xalen_batch.accounts import accounts, quotas
from xalen_batch.accounts.accounts import Owner
from xalen_batch.billing import prices
from xalen_batch.billing.terms import Terms
from xalen_batch.broker import Job
from xalen_batch.catalog import Model
from xalen_batch.config import settings
from xalen_batch.endpoints.names import Endpoint
from xalen_batch.errors import QUOTED_CHARS, InvalidRequest, NotCancellable, NotFound
from xalen_batch.files import Purpose
from xalen_batch.models import Batch, File, ScheduleRun, Task
from xalen_batch.models.base import table_of
from xalen_batch.models.tasks import TOKEN_COUNTERS
from xalen_batch.states import BATCH_MOVES, MAY_START, BatchStatus, OnInvalid, QueuedCall, TaskState
from xalen_batch.windows import ExecutionWindow

logger = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a batch: numbers of lines, and the tokens of the lines that succeeded.

    `cancelled`, `expired`: lines that were not run before the batch was cancelled or its completion
    window passed. `counted_…`: billed tokens that xalen-batch counted, since the backend reported
    no usable usage; None until the batch has its invoice.
    """

    total: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    counted_input_tokens: int | None = None
    counted_output_tokens: int | None = None

    @property
    def done(self) -> int:
        """Lines that have ended."""
        return self.completed + self.failed + self.cancelled + self.expired


@dataclass(frozen=True, slots=True)
class Retry:
    """The batch that a new one retries, and the reasons for which the lines had failed."""

    of: UUID
    codes: Sequence[str]


def create(
    session: Session,
    owner: Owner,
    *,
    input_file_id: str,
    endpoint: Endpoint,
    completion_window: str,
    metadata: Mapping[str, str] | None = None,
    output_expires_after: int | None = None,
    execution_window: ExecutionWindow | None = None,
    on_invalid: OnInvalid = OnInvalid.FAIL,
    run: ScheduleRun | None = None,
    call: QueuedCall | None = None,
    discount_rate: Decimal | None = None,
    retry: Retry | None = None,
) -> Batch:
    """Create a batch with the terms and the discount in force now, and enqueue its validation.

    `output_expires_after`: lifetime of the output files in seconds. `run`: the schedule's run that
    creates the batch. `call`: the batch is one queued call. `discount_rate`: in place of that in
    force. `retry`: the batch runs lines of another one again; its validation writes its input file.
    Raises InvalidRequest if the input file or a window is not valid, or if no model of the endpoint
    may be named; TooManyRequests if a quota is used up; StorageFull while a disk is short of space.
    """
    disk.refuse_if_full()
    completion = windows.completion(completion_window)
    interval = None
    if execution_window is not None:
        interval = _first_interval(session, execution_window, completion)
    purpose = Purpose.BATCH if call is None else Purpose.CALL
    is_ready = run is None and retry is None
    file = input_file(session, owner, input_file_id, is_ready=is_ready, purpose=purpose)
    frozen = _agreed(session, owner, endpoint)
    quotas.admit_batch(session, owner)
    row = {
        "id": ids.new(),
        "account_id": owner.account_id,
        "livemode": owner.livemode,
        "endpoint": endpoint,
        "completion_window": completion_window,
        "input_file_id": file.id,
        "output_expires_after": output_expires_after,
        "on_invalid": on_invalid,
        "metadata": dict(metadata or {}),
        "price_snapshot": frozen.prices,
        "backends": frozen.backends if owner.livemode else None,
        "discount_rate": (settings().batch_discount if discount_rate is None else discount_rate),
        "call": call,
        "completion": completion,
        "execution_window": execution_window and execution_window.model_dump(mode="json"),
        "window_opens_at": interval and interval[0],
        "window_closes_at": interval and interval[1],
        "schedule_id": run and run.schedule_id,
        "run_id": run and run.id,
        "retry_of": retry and retry.of,
        "retry_codes": retry and list(retry.codes),
    }
    batch: Batch = session.scalars(_INSERT, row).one()
    db.enqueue(session, Job.VALIDATE, batch.id.hex)
    return batch


# Built once, since building a statement takes longer than running it.
_INSERT = select(Batch).from_statement(
    insert(table_of(Batch))
    .values(expires_at=func.now() + bindparam("completion", type_=Interval))
    .returning(*table_of(Batch).columns)
)


def input_file(
    session: Session,
    owner: Owner,
    public_id: str,
    *,
    param: str = "input_file_id",
    is_ready: bool = True,
    purpose: Purpose = Purpose.BATCH,
) -> File:
    """The input file of a batch, locked against deletion until this transaction ends.

    `is_ready`: the file must have its content; the input of a schedule's run or of a retry gets it
    during validation. Raises InvalidRequest, which names `param`, if the file cannot be an input.
    """
    try:
        file = files.lock(session, owner, public_id)
    except NotFound:
        raise InvalidRequest(
            f"{param}: there is no file {public_id[:QUOTED_CHARS]!r}. Upload one with purpose"
            " `batch` and send its id.",
            param=param,
        ) from None
    if file.purpose != purpose:
        raise InvalidRequest(
            f"{param}: file {public_id} has the purpose `{file.purpose}`. Upload it again with"
            " purpose `batch`.",
            param=param,
        )
    if is_ready:
        files.refuse_if_not_ready(session, file, param=param)
    return file


def terms(batch: Batch) -> Terms:
    """The terms that were frozen in a batch when it was created."""
    backends = {}
    for model in batch.price_snapshot.keys() | (batch.backends or {}):
        kind = batch.backend_of(model)
        if kind is not None:
            backends[model] = kind
    return Terms(batch.price_snapshot, backends)


def offered(session: Session, owner: Owner, endpoint: Endpoint | None = None) -> Terms:
    """The terms of a batch created now, for the models of an endpoint; None: for all models."""
    models = _serving(endpoint)
    frozen = prices.snapshot(
        session, livemode=owner.livemode, models=[model.id for model in models]
    )
    return Terms(frozen, _backends(session, owner, models))


def _agreed(session: Session, owner: Owner, endpoint: Endpoint) -> Terms:
    """As `offered`, but raises InvalidRequest if no model of the endpoint may be named.

    Otherwise the batch would only fail after its file was read.
    """
    found = offered(session, owner, endpoint)
    refusals = []
    for model in _serving(endpoint):
        refusal = found.refusal(model.id)
        if refusal is None:
            return found
        refusals.append(refusal)
    if refusals:
        raise InvalidRequest(refusals[0].message, param="endpoint", code=refusals[0].code)
    return found


def _serving(endpoint: Endpoint | None) -> list[Model]:
    """The catalog's models that serve an endpoint; None: all models."""
    return [
        model
        for model in catalog.models().values()
        if endpoint is None or endpoint in model.endpoints
    ]


def _backends(session: Session, owner: Owner, models: Iterable[Model]) -> dict[str, str]:
    """The kind of backend of each model: simulated in test mode, else the kind in the catalog.

    Models without a kind, and simulated ones that the account's live keys may not use, are left
    out.
    """
    if not owner.livemode:
        return {model.id: "simulated" for model in models}
    found = {model.id: model.backend.kind for model in models}
    if "simulated" in found.values() and not accounts.may_simulate(session, owner.account_id):
        found = {model: kind for model, kind in found.items() if kind != "simulated"}
    return {model: kind for model, kind in found.items() if kind}


def get(session: Session, owner: Owner, public_id: str, *, or_ledger: bool = False) -> Batch:
    """A batch of this owner; with `or_ledger`, also a ledger of live calls. Raises NotFound."""
    id = ids.parse("batch", public_id)
    batch = None
    if id is not None:
        batch = session.scalars(
            _GET, {"id": id, "account_id": owner.account_id, "livemode": owner.livemode}
        ).one_or_none()
    if batch is None or (batch.ledger is not None and not or_ledger):
        raise NotFound(f"No such Batch object: {public_id[:QUOTED_CHARS]}", param="batch_id")
    return batch


_GET = select(Batch).where(
    Batch.id == bindparam("id"),
    Batch.account_id == bindparam("account_id"),
    Batch.livemode == bindparam("livemode"),
)


def cancel(session: Session, batch: Batch) -> Batch:
    """Start no further line of a batch; results that exist are kept and billed. Idempotent.

    Raises NotCancellable for a batch that ended otherwise, or that is finalizing.
    """
    while batch.status not in (BatchStatus.CANCELLING, BatchStatus.CANCELLED):
        if BatchStatus.CANCELLING not in BATCH_MOVES[BatchStatus(batch.status)]:
            name = ids.render("batch", batch.id)
            raise NotCancellable(
                f"Batch {name} is {batch.status}: none of its lines is left to cancel. Its status"
                " does not change any more."
            )
        if batch.move(session, BatchStatus.CANCELLING):
            logger.info("batch.cancelling", batch_id=batch.id)
        else:
            session.refresh(batch)
    if batch.status == BatchStatus.CANCELLING:
        db.enqueue(session, Job.FINALIZE, batch.id.hex)
    return batch


def progress(session: Session, batches: Sequence[Batch]) -> dict[UUID, Progress]:
    """The progress of each batch: the sum over its tasks while it runs, then its own columns."""
    found = {batch.id: _ended(batch) for batch in batches if BatchStatus(batch.status).is_terminal}
    # A batch that is validating has no task yet.
    running = {
        batch.id: batch
        for batch in batches
        if batch.id not in found and batch.status != BatchStatus.VALIDATING
    }
    if running:
        for row in session.execute(_PROGRESS, {"ids": list(running)}):
            counts = {name: int(getattr(row, name)) for name in (*OF_TASKS, "total", "unrun")}
            is_cancelling = running[row.batch_id].status == BatchStatus.CANCELLING
            counts["cancelled" if is_cancelling else "expired"] = counts.pop("unrun")
            found[row.batch_id] = Progress(**counts)
    return {batch.id: found.get(batch.id, Progress()) for batch in batches}


# Columns of tasks that are fields of Progress.
OF_TASKS = ("completed", "failed", *TOKEN_COUNTERS)


def _ended(batch: Batch) -> Progress:
    counts = {name: getattr(batch, name) for name in Progress.__slots__}
    # Null in batches that ended before these columns existed: `failed` includes these lines.
    return Progress(**counts | {name: counts[name] or 0 for name in ("cancelled", "expired")})


_UNRUN_LINES = case(
    (Task.state == TaskState.DONE, Task.lines - Task.completed - Task.failed), else_=0
)
_PROGRESS = (
    select(
        Task.batch_id,
        *(func.coalesce(func.sum(getattr(Task, name)), 0).label(name) for name in OF_TASKS),
        func.coalesce(func.sum(Task.lines), 0).label("total"),
        func.coalesce(func.sum(_UNRUN_LINES), 0).label("unrun"),
    )
    .where(Task.batch_id.in_(bindparam("ids", expanding=True)))
    .group_by(Task.batch_id)
)


def interval(batch: Batch, now: datetime) -> tuple[datetime, datetime] | None:
    """The execution interval (opens, closes) that is open at `now` or opens next.

    None for a batch without an execution window, or that starts no line any more.
    """
    if (
        batch.window_opens_at is None
        or batch.window_closes_at is None
        or batch.status not in MAY_START
    ):
        return None
    if now < batch.window_closes_at:
        return batch.window_opens_at, batch.window_closes_at
    # The stored interval has closed, and no worker has replaced it yet (`recover.due`).
    return ExecutionWindow.model_validate(batch.execution_window).interval(now)


def _first_interval(
    session: Session, window: ExecutionWindow, completion: timedelta
) -> tuple[datetime, datetime]:
    now = db.now(session)
    windows.refuse_if_never_open(window, now, completion)
    return window.interval(now)
