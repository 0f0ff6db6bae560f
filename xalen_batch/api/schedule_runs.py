"""/v1/schedules/{id}/runs, and runs on request."""

import hashlib
from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Response
from sqlalchemy.orm import Session

from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.api import idempotency, schedules
from xalen_batch.api.deps import IdempotencyKey, calling
from xalen_batch.api.http.responses import listed, stored_for
from xalen_batch.api.schedule_schemas import BackfillRequest, RunObject, RunRequest
from xalen_batch.api.schemas import ListObject
from xalen_batch.models import ScheduleRun
from xalen_batch.schedules import manual, runs
from xalen_batch.schedules import schedules as registry
from xalen_batch.schedules.definition import Definition
from xalen_batch.states import RunState

PATH = f"{schedules.PATH}/{{schedule_id}}"
router = APIRouter(prefix=PATH, tags=["schedules"])


@router.get("/runs", response_model=ListObject[RunObject])
@calling(Scope.READ)
def list_runs(
    session: Session,
    caller: Caller,
    schedule_id: str,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
    state: RunState | None = None,
) -> Response:
    """The runs of a schedule, newest first; also of a deleted schedule."""
    schedule = registry.past(session, caller, schedule_id)

    def page(session: Session, limit: int, after: str | None) -> ListObject[RunObject]:
        found = runs.page(session, schedule.id, state=state, limit=limit, after=after)
        return ListObject[RunObject].of(shown(session, found.data), found.has_more)

    return listed(session, caller, page, limit=limit, after=after, portion=schedules.PORTION)


@router.post("/run", response_model=RunObject)
@calling(Scope.SUBMIT, is_long=True)
def run_schedule(
    session: Session,
    caller: Caller,
    schedule_id: str,
    body: RunRequest | None = None,
    key: IdempotencyKey = None,
) -> Response:
    """Run a schedule now. Its next fire does not change."""

    def create() -> bytes:
        schedule = registry.lock(session, caller, schedule_id)
        as_of = (
            None
            if body is None or body.as_of is None
            else Definition.model_validate(schedule.definition).instant(body.as_of)
        )
        run = manual.run_now(session, schedule, as_of)
        return shown(session, [run])[0].model_dump_json().encode()

    asked = b"" if body is None else orjson.dumps(body.model_dump(mode="json"))
    fingerprint = hashlib.sha256(schedule_id.encode() + asked).digest()
    answer = idempotency.once(
        session, caller, key, route=f"POST {PATH}/run", fingerprint=fingerprint, create=create
    )
    return stored_for(caller, answer, RunObject)


@router.post("/backfill", response_model=ListObject[RunObject])
@calling(Scope.SUBMIT, is_long=True)
def backfill_schedule(
    session: Session,
    caller: Caller,
    body: BackfillRequest,
    schedule_id: str,
    key: IdempotencyKey = None,
) -> Response:
    """Run the past instants in a time range that never ran, were missed or were skipped, one after
    another.
    """

    def create() -> bytes:
        schedule = registry.lock(session, caller, schedule_id)
        definition = Definition.model_validate(schedule.definition)
        found = manual.backfill(
            session, schedule, definition.instant(body.start_at), definition.instant(body.end_at)
        )
        return (
            ListObject[RunObject]
            .of(shown(session, found), has_more=False)
            .model_dump_json()
            .encode()
        )

    fingerprint = hashlib.sha256(
        schedule_id.encode() + orjson.dumps(body.model_dump(mode="json"))
    ).digest()
    answer = idempotency.once(
        session, caller, key, route=f"POST {PATH}/backfill", fingerprint=fingerprint, create=create
    )
    return stored_for(caller, answer, ListObject[RunObject])


def shown(session: Session, found: list[ScheduleRun]) -> list[RunObject]:
    outcomes = runs.outcomes(session, found)
    return [RunObject.of(run, outcomes[run.id]) for run in found]
