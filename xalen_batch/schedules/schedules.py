"""Schedules of an account: create, read, change, pause, resume and delete them.

Each run keeps the definition that it was recorded with.
"""

from datetime import datetime

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from xalen_batch import db, ids, log, paging
from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Owner
from xalen_batch.accounts.quotas import Quota
from xalen_batch.batches import batches
from xalen_batch.errors import InvalidRequest, NotFound
from xalen_batch.models import Schedule
from xalen_batch.paging import Page
from xalen_batch.schedules import fire, inbox, runs
from xalen_batch.schedules.definition import Definition
from xalen_batch.schedules.misfire import MICROSECOND
from xalen_batch.states import OnInvalid, RunState, ScheduleStatus

logger = log.get(__name__)

# Characters of a pause's note.
MOST_NOTE = 500


def create(session: Session, owner: Owner, definition: Definition) -> Schedule:
    """Create a schedule, which fires from now on.

    InvalidRequest if it could never work, TooManyRequests beyond the account's quota.
    """
    quotas.admit(session, owner, {Quota.SCHEDULES: 1})
    now = db.now(session)
    schedule = Schedule(
        id=ids.new(),
        account_id=owner.account_id,
        livemode=owner.livemode,
        run_counts={},
        failures=0,
        updated_at=now,
        created_at=now,
    )
    definition.check_to_come(now)
    _define(session, owner, schedule, definition, now)
    schedule.aim(definition.next_fire(schedule.id, now))
    session.add(schedule)
    session.flush()
    return schedule


def get(session: Session, owner: Owner, public_id: str) -> Schedule:
    """A schedule of this owner. NotFound if it does not exist or is deleted."""
    return _one(session, public_id, _visible(owner).where(Schedule.deleted_at.is_(None)))


def past(session: Session, owner: Owner, public_id: str) -> Schedule:
    """As `get`, and finds deleted schedules too: their runs stay."""
    return _one(session, public_id, _visible(owner))


def lock(session: Session, owner: Owner, public_id: str) -> Schedule:
    """As `get`, with the row locked: no other transaction fires or changes the schedule.

    FOR NO KEY UPDATE: requests may still arrive in its inbox.
    """
    return _one(
        session,
        public_id,
        _visible(owner).where(Schedule.deleted_at.is_(None)).with_for_update(key_share=True),
    )


def keep(session: Session, owner: Owner, public_id: str) -> Schedule:
    """As `get`, with a lock against deletion: FOR KEY SHARE. The schedule may fire meanwhile."""
    return _one(
        session,
        public_id,
        _visible(owner)
        .where(Schedule.deleted_at.is_(None))
        .with_for_update(read=True, key_share=True),
    )


def page(
    session: Session,
    owner: Owner,
    *,
    status: ScheduleStatus | None = None,
    limit: int,
    after: str | None,
) -> Page[Schedule]:
    """Schedules, the newest first."""
    rows = _visible(owner).where(Schedule.deleted_at.is_(None))
    if status is not None:
        rows = rows.where(Schedule.status == status)
    return paging.page(session, rows, Schedule.id, "sched", limit=limit, order="desc", after=after)


def change(session: Session, owner: Owner, schedule: Schedule, definition: Definition) -> None:
    """Replace the definition of a locked schedule, after firing the instants that have come.

    InvalidRequest if requests wait in its inbox and the new definition could not run them.
    """
    before = Definition.model_validate(schedule.definition)
    may_strand = before.inbox is not None and (
        definition.inbox is None or definition.endpoint != before.endpoint
    )
    if may_strand:
        # FOR UPDATE waits for requests that are arriving, and keeps others out. Lock order: before
        # a run that starts below assigns requests, which arriving ones may wait for.
        session.execute(select(Schedule.id).where(Schedule.id == schedule.id).with_for_update())
    fire.bring_up_to_date(session, schedule)
    if may_strand:
        _refuse_to_strand(session, schedule, "inbox" if definition.inbox is None else "endpoint")
    now = db.now(session)
    if definition.when != before.when:
        definition.check_to_come(now)
    pending = None
    if schedule.next_fire_at is not None:
        pending = schedule.next_fire_at - before.delay(schedule.id)
    _define(session, owner, schedule, definition, now)
    if schedule.status != ScheduleStatus.PAUSED:
        # An instant that has come but waits for the jitter still fires.
        after = now
        if pending is not None and pending <= now:
            after = pending - MICROSECOND
        schedule.aim(definition.next_fire(schedule.id, after))
    schedule.updated_at = now
    session.flush()


def pause(session: Session, schedule: Schedule, note: str | None) -> None:
    """Stop a locked schedule from firing until it is resumed.

    Instants that come meanwhile never run.
    """
    if note is not None and len(note) > MOST_NOTE:
        raise InvalidRequest(
            f"note: it has {len(note):,} characters; the most is {MOST_NOTE}. Shorten it.",
            param="note",
        )
    fire.bring_up_to_date(session, schedule)
    if note is not None or schedule.status != ScheduleStatus.PAUSED:
        schedule.pause(db.now(session), note)
    session.flush()
    logger.info("schedule.paused", schedule_id=schedule.id)


def resume(session: Session, schedule: Schedule) -> None:
    """Let a locked schedule fire again from its next instant on, and reset its failures."""
    if schedule.status == ScheduleStatus.PAUSED:
        now = db.now(session)
        schedule.aim(Definition.model_validate(schedule.definition).next_fire(schedule.id, now))
        schedule.failures = 0
        session.flush()
        logger.info("schedule.resumed", schedule_id=schedule.id)


def delete(session: Session, owner: Owner, public_id: str, *, discard_requests: bool) -> int:
    """Delete a schedule, and return the number of discarded requests.

    Its runs, batches and invoices stay. InvalidRequest while requests wait in its inbox, unless
    `discard_requests`.
    """
    # FOR UPDATE waits for requests that are arriving, and keeps others out.
    schedule = _one(
        session, public_id, _visible(owner).where(Schedule.deleted_at.is_(None)).with_for_update()
    )
    waiting = inbox.pending(session, [schedule.id]).get(schedule.id, 0)
    if waiting and not discard_requests:
        raise InvalidRequest(
            f"{waiting:,} request{' waits' if waiting == 1 else 's wait'} in the inbox of"
            f" {public_id}. Run it first, or delete it with discard_requests=true.",
            param="discard_requests",
            code="inbox_not_empty",
        )
    for run in runs.unended(session, schedule):
        if run.state == RunState.WAITING:
            runs.end(
                session,
                schedule,
                run,
                RunState.SKIPPED,
                "schedule_deleted",
                "Its schedule was deleted before it started.",
            )
    discarded = inbox.discard(session, schedule.id) if waiting else 0
    schedule.deleted_at = db.now(session)
    schedule.next_fire_at = None
    session.flush()
    logger.info("schedule.deleted", schedule_id=schedule.id, discarded=discarded)
    return discarded


def _refuse_to_strand(session: Session, schedule: Schedule, param: str) -> None:
    """InvalidRequest, about `param`, if requests wait in the inbox."""
    waiting = inbox.pending(session, [schedule.id])[schedule.id]
    if waiting:
        raise InvalidRequest(
            f"{param}: {waiting:,} request{' waits' if waiting == 1 else 's wait'} in its inbox."
            " Run it first, then change it.",
            param=param,
            code="inbox_not_empty",
        )


def _define(
    session: Session, owner: Owner, schedule: Schedule, definition: Definition, now: datetime
) -> None:
    definition.check(now)
    schedule.name = definition.name
    # Leave out the default: a process of the previous version refuses fields it does not know.
    unsaid = {"on_invalid"} if definition.on_invalid == OnInvalid.FAIL else set[str]()
    schedule.definition = definition.model_dump(mode="json", exclude=unsaid)
    # Read the file before `file_id` changes: an expired file is kept only by its schedule.
    file_id = None
    if definition.file_id:
        param = definition.file_param
        file_id = batches.input_file(session, owner, definition.file_id, param=param).id
    schedule.file_id = file_id


def _visible(owner: Owner) -> Select[Schedule]:
    return select(Schedule).where(
        Schedule.account_id == owner.account_id, Schedule.livemode == owner.livemode
    )


def _one(session: Session, public_id: str, rows: Select[Schedule]) -> Schedule:
    id = ids.parse("sched", public_id)
    schedule = None if id is None else session.scalars(rows.where(Schedule.id == id)).one_or_none()
    if schedule is None:
        raise NotFound(f"No such Schedule object: {public_id[:100]}", param="schedule_id")
    return schedule
