"""/v1/schedules: create, read, change, pause, resume, preview and delete schedules."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy.orm import Session

from xalen_batch import db
from xalen_batch.accounts import audit
from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.api import idempotency, long_work, scopes
from xalen_batch.api.deps import BriefSubmitter, IdempotencyKey, calling
from xalen_batch.api.http.responses import listed, stored
from xalen_batch.api.schedule_schemas import (
    Changes,
    DeletedSchedule,
    PauseRequest,
    PreviewObject,
    PreviewRequest,
    ScheduleObject,
)
from xalen_batch.api.schemas import ListObject
from xalen_batch.endpoints.names import CHAT
from xalen_batch.models import Schedule
from xalen_batch.ratelimit import account
from xalen_batch.schedules import inbox, preflight, runs, schedules
from xalen_batch.schedules.definition import WHAT, Definition, Inbox
from xalen_batch.states import ScheduleStatus

PATH = "/v1/schedules"
# Schedules of a list that are read and rendered at a time: a last run's manifest may be long.
PORTION = 10
router = APIRouter(prefix=PATH, tags=["schedules"])

Count = Annotated[int, Query(ge=1, le=100, description="Number of instants.")]


@router.post("", response_model=ScheduleObject)
def create_schedule(
    body: Definition, caller: BriefSubmitter, key: IdempotencyKey = None
) -> Response:
    """Create a schedule. Its input is checked now, as its next run would read it."""
    route = f"POST {PATH}"
    content = orjson.dumps(body.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
    fingerprint = hashlib.sha256(content).digest()
    with db.transaction() as session:
        account.admit_change(session, caller)
        answer = idempotency.kept(session, caller, key, route=route, fingerprint=fingerprint)
        now = db.now(session)
    if answer is not None:
        return stored(answer)
    _check(caller, body, now)
    with db.transaction() as session:
        audit.sign(session, caller.actor)

        def create() -> bytes:
            schedule = schedules.create(session, caller, body)
            return shown(session, [schedule])[0].model_dump_json().encode()

        answer = idempotency.once(
            session, caller, key, route=route, fingerprint=fingerprint, create=create
        )
        return stored(answer)


@router.get("", response_model=ListObject[ScheduleObject])
@calling(Scope.READ)
def list_schedules(
    session: Session,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
    status: ScheduleStatus | None = None,
) -> Response:
    """Schedules, newest first."""

    def page(session: Session, limit: int, after: str | None) -> ListObject[ScheduleObject]:
        found = schedules.page(session, caller, status=status, limit=limit, after=after)
        return ListObject[ScheduleObject].of(shown(session, found.data), found.has_more)

    return listed(session, caller, page, limit=limit, after=after, portion=PORTION)


@router.post("/preview")
@calling(Scope.READ, is_long=True)
def preview_definition(
    session: Session, caller: Caller, body: PreviewRequest, count: Count = 10
) -> PreviewObject:
    """The next instants of a schedule that does not exist yet. Saves nothing."""
    definition = Definition(name="preview", endpoint=CHAT, inbox=Inbox(), **body.model_dump())
    now = db.now(session)
    definition.check(now)
    definition.check_to_come(now)
    return PreviewObject.of(definition, islice(definition.fires(now), count), None)


@router.get("/{schedule_id}")
@calling(Scope.READ)
def get_schedule(session: Session, caller: Caller, schedule_id: str) -> ScheduleObject:
    return shown(session, [schedules.get(session, caller, schedule_id)])[0]


@router.patch("/{schedule_id}", response_model=ScheduleObject)
def change_schedule(body: Changes, caller: BriefSubmitter, schedule_id: str) -> Response:
    """Replace the fields that are sent.

    Each run keeps the definition that it was recorded with, also a run that waits.
    """
    checked: Any = None
    with db.reading() as session:
        account.admit_change(session, caller)
    while True:
        with db.transaction() as session:
            audit.sign(session, caller.actor)
            # Merge under the row's lock: two concurrent changes must not undo each other (lost
            # update).
            schedule = schedules.lock(session, caller, schedule_id)
            definition = _merged(schedule.definition, body.root)
            before = _read_by(Definition.model_validate(schedule.definition))
            if _read_by(definition) in (before, checked):
                schedules.change(session, caller, schedule, definition)
                content = scopes.render(shown(session, [schedule])[0], caller.scopes)
                return Response(content, media_type="application/json")
            now = db.now(session)
        # The new input is not checked yet: check it without a transaction, then merge again.
        _check(caller, definition, now)
        checked = _read_by(definition)


@router.delete("/{schedule_id}")
@calling(Scope.SUBMIT)
def delete_schedule(
    session: Session,
    caller: Caller,
    schedule_id: str,
    discard_requests: Annotated[
        bool, Query(description="Delete it even if requests wait in its inbox: they are lost.")
    ] = False,
) -> DeletedSchedule:
    """Delete a schedule. Its runs, batches and invoices stay."""
    discarded = schedules.delete(session, caller, schedule_id, discard_requests=discard_requests)
    return DeletedSchedule(id=schedule_id, discarded_requests=discarded)


@router.post("/{schedule_id}/pause")
@calling(Scope.SUBMIT)
def pause_schedule(
    session: Session, caller: Caller, schedule_id: str, body: PauseRequest | None = None
) -> ScheduleObject:
    """Stop firing it until it is resumed.

    Instants that come meanwhile never run; runs that have started go on.
    """
    schedule = schedules.lock(session, caller, schedule_id)
    schedules.pause(session, schedule, None if body is None else body.note)
    return shown(session, [schedule])[0]


@router.post("/{schedule_id}/resume")
@calling(Scope.SUBMIT)
def resume_schedule(session: Session, caller: Caller, schedule_id: str) -> ScheduleObject:
    """Fire it again, from its next instant on. Any body is ignored."""
    schedule = schedules.lock(session, caller, schedule_id)
    schedules.resume(session, schedule)
    return shown(session, [schedule])[0]


@router.get("/{schedule_id}/preview")
@calling(Scope.READ, is_long=True)
def preview_schedule(
    session: Session, caller: Caller, schedule_id: str, count: Count = 10
) -> PreviewObject:
    """Its next instants; of a paused schedule, as if it were active."""
    schedule = schedules.get(session, caller, schedule_id)
    definition = Definition.model_validate(schedule.definition)
    instants = islice(definition.fires(db.now(session)), count)
    return PreviewObject.of(
        definition, instants, int(definition.delay(schedule.id).total_seconds())
    )


def _check(caller: Caller, definition: Definition, now: datetime) -> None:
    """InvalidRequest if the schedule cannot work. Reads its file: call it without a transaction."""
    with long_work.admitted(caller):
        definition.check(now)
        preflight.check(caller, definition, now)


def _read_by(definition: Definition) -> Any:
    """The fields that decide whether a run's input is valid."""
    return definition.model_dump(include={*WHAT, "endpoint", "on_invalid"})


def _merged(before: dict[str, Any], changes: dict[str, Any]) -> Definition:
    """A definition with changes applied. RequestValidationError if the result is invalid."""
    merged = dict(before)
    if any(changes.get(name) is not None for name in WHAT):
        merged |= dict.fromkeys(WHAT)
    window = merged["execution_window"]
    if window is not None and window["timezone"] == merged["timezone"]:
        # The window has the schedule's zone, so it follows a change of that zone.
        merged["execution_window"] = {**window, "timezone": None}
    merged |= changes
    for name, field in Definition.model_fields.items():
        if merged.get(name) is None and not field.is_required():
            merged.pop(name, None)
    try:
        return Definition.model_validate(merged)
    except ValidationError as error:
        raise RequestValidationError(
            [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
        ) from error


def shown(session: Session, schedules: Sequence[Schedule]) -> list[ScheduleObject]:
    pending = inbox.pending(session, [schedule.id for schedule in schedules])
    recent = runs.recent(session, schedules)
    outcomes = runs.outcomes(session, [of_one[-1] for of_one in recent.values() if of_one])
    return [
        ScheduleObject.of(
            schedule,
            pending=pending.get(schedule.id, 0),
            recent=recent[schedule.id],
            last=outcomes[recent[schedule.id][-1].id] if recent[schedule.id] else None,
        )
        for schedule in schedules
    ]
