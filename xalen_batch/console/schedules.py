"""Schedules: did the nights run, when is the next one, and pause, resume or run now."""

import hashlib
import secrets
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from sqlalchemy.orm import Session

from xalen_batch import db, ids
from xalen_batch.accounts.accounts import Scope
from xalen_batch.accounts.sessions import Visitor
from xalen_batch.api import idempotency
from xalen_batch.api import schedule_runs as api_runs
from xalen_batch.api import schedules as api
from xalen_batch.api.schedule_schemas import PreviewObject
from xalen_batch.console import routes, views
from xalen_batch.console.routes import PATH, PageRoute
from xalen_batch.schedules import manual, runs, schedules
from xalen_batch.schedules.definition import Definition
from xalen_batch.states import ScheduleStatus

router = APIRouter(prefix=f"{PATH}/schedules", route_class=PageRoute, include_in_schema=False)
ON_PAGE = 25
# Runs of the bar, and of the table below it.
BAR, RUNS, FIRES = 60, 15, 8
After = Annotated[str | None, Query(max_length=100)]


@router.get("")
@routes.page()
def list_schedules(
    request: Request, session: Session, visitor: Visitor, after: After = None
) -> Response:
    """Schedules, the newest first."""
    found = schedules.page(session, visitor.caller, limit=ON_PAGE, after=after)
    shown = api.shown(session, found.data)
    return views.show(
        request,
        visitor,
        "schedules.html",
        schedules=shown,
        older=f"{PATH}/schedules?after={shown[-1].id}" if found.has_more else None,
        is_first=after is None,
    )


@router.get("/{schedule_id}")
@routes.page()
def show_schedule(
    request: Request, session: Session, visitor: Visitor, schedule_id: str
) -> Response:
    """A schedule with its next fires and its last runs."""
    schedule = schedules.get(session, visitor.caller, schedule_id)
    definition = Definition.model_validate(schedule.definition)
    past = runs.page(session, schedule.id, state=None, limit=BAR, after=None).data
    return views.show(
        request,
        visitor,
        "schedule.html",
        schedule=api.shown(session, [schedule])[0],
        preview=PreviewObject.of(
            definition, islice(definition.fires(db.now(session)), FIRES), None
        ),
        bar=past[::-1],
        runs=api_runs.shown(session, past[:RUNS]),
        is_paused=schedule.status == ScheduleStatus.PAUSED,
        is_over=schedule.status == ScheduleStatus.ENDED,
    )


@router.get("/{schedule_id}/run")
@routes.page(Scope.SUBMIT)
def confirm_run(request: Request, session: Session, visitor: Visitor, schedule_id: str) -> Response:
    """The effect of a run, and the form for it."""
    schedule = schedules.get(session, visitor.caller, schedule_id)
    return views.show(
        request,
        visitor,
        "confirm.html",
        title=f"Run {schedule.name} now",
        effect=(
            "Makes a run beside its instants, with the input of this moment. Its next fire does"
            " not change." + (" It is billed." if visitor.caller.livemode else "")
        ),
        names=[],
        action=f"{PATH}/schedules/{schedule_id}/run",
        fields=[("nonce", secrets.token_hex(16))],
        verb="Run it now",
        is_final=False,
        back=f"{PATH}/schedules/{schedule_id}",
    )


@router.post("/{schedule_id}/run")
@routes.change(is_long=True)
def run_now(
    request: Request,
    session: Session,
    visitor: Visitor,
    schedule_id: str,
    nonce: Annotated[str, Form(max_length=100)] = "",
) -> Response:
    """Run it now, once for each `nonce`."""

    def create() -> bytes:
        run = manual.run_now(session, schedules.lock(session, visitor.caller, schedule_id))
        return ids.render("run", run.id).encode()

    fingerprint = hashlib.sha256(repr((schedule_id, nonce)).encode()).digest()
    idempotency.once(
        session,
        visitor.caller,
        f"console-{fingerprint.hex()}" if nonce else None,
        route=f"POST {PATH}/schedules/run",
        fingerprint=fingerprint,
        create=create,
    )
    return routes.to(f"{PATH}/schedules/{schedule_id}")


@router.post("/{schedule_id}/pause")
@routes.change()
def pause(
    request: Request,
    session: Session,
    visitor: Visitor,
    schedule_id: str,
    note: Annotated[str, Form(max_length=2_000)] = "",
) -> Response:
    """Stop firing it until it is resumed."""
    schedule = schedules.lock(session, visitor.caller, schedule_id)
    schedules.pause(session, schedule, note.replace("\0", "").strip() or None)
    return routes.to(f"{PATH}/schedules/{schedule_id}")


@router.post("/{schedule_id}/resume")
@routes.change()
def resume(request: Request, session: Session, visitor: Visitor, schedule_id: str) -> Response:
    """Fire it again, from its next instant on."""
    schedules.resume(session, schedules.lock(session, visitor.caller, schedule_id))
    return routes.to(f"{PATH}/schedules/{schedule_id}")
