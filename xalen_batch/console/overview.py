"""The first page: what runs, what needs attention, what fires next, and what it costs."""

from datetime import UTC, datetime
from time import time
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from xalen_batch.accounts.accounts import Scope
from xalen_batch.accounts.sessions import Visitor
from xalen_batch.api import schedules as api
from xalen_batch.batches import lists
from xalen_batch.batches.lists import BatchFilters
from xalen_batch.billing import statement_pages
from xalen_batch.console import attention, routes, views
from xalen_batch.console.batch_rows import BatchRow, rows
from xalen_batch.console.routes import PATH, PageRoute
from xalen_batch.console.samples import samples
from xalen_batch.schedules import schedules
from xalen_batch.states import BatchStatus, ScheduleStatus

router = APIRouter(prefix=PATH, route_class=PageRoute, include_in_schema=False)
OPEN = (
    BatchStatus.IN_PROGRESS,
    BatchStatus.VALIDATING,
    BatchStatus.FINALIZING,
    BatchStatus.CANCELLING,
)
# Batches of each status, and schedules, that the page looks at.
MOST_OF_STATUS, MOST_SCHEDULES, MOST_FIRES = 10, 50, 5


@router.get("")
@routes.page()
def overview(request: Request, session: Session, visitor: Visitor) -> Response:
    """The state of the account in one mode."""
    now = int(time())
    running = _open(session, visitor, now)
    if request.headers.get("hx-target") == "running":
        return views.show(
            request, visitor, "overview.html", block="now_running", rows=running, now=now
        )
    found = schedules.page(session, visitor.caller, limit=MOST_SCHEDULES, after=None)
    planned = api.shown(session, found.data)
    notes = attention.of(session, visitor, running, planned, now)
    fires = [each for each in planned if each.next_fire_at is not None]
    fires.sort(key=lambda each: each.next_fire_at or 0)
    is_new = not (running or planned or notes) and not _has_any(session, visitor)
    return views.show(
        request,
        visitor,
        "overview.html",
        rows=running,
        notes=notes,
        headline=_headline(running, notes),
        fires=[each for each in fires if each.status == ScheduleStatus.ACTIVE][:MOST_FIRES],
        month=_month(session, visitor),
        is_new=is_new,
        samples=samples(request, None, "/v1/chat/completions"),
        now=now,
    )


def _open(session: Session, visitor: Visitor, now: int) -> list[BatchRow]:
    """Open batches, those that are stuck first, then by deadline."""
    found = [
        batch
        for status in OPEN
        for batch in lists.page(
            session,
            visitor.caller,
            BatchFilters(status=status),
            limit=MOST_OF_STATUS,
            after=None,
        ).data
    ]
    shown = rows(session, visitor, found, now)
    return sorted(shown, key=lambda row: (row.state != "held", row.of.expires_at))


def _has_any(session: Session, visitor: Visitor) -> bool:
    return bool(lists.page(session, visitor.caller, BatchFilters(), limit=1, after=None).data)


def _month(session: Session, visitor: Visitor) -> dict[str, Any] | None:
    """The statement of this month so far; None for a key that may not see it."""
    if Scope.BILLING not in visitor.caller.scopes:
        return None
    first_day = datetime.now(UTC).date().replace(day=1)
    found = statement_pages.page(
        session, visitor.caller, first_day, limit=statement_pages.PAGE_LINES, after=None
    )
    return {**found, "name": f"{first_day:%B %Y}", "invoices": len(found["lines"])}


def _headline(running: list[BatchRow], notes: list[attention.Note]) -> str:
    urgent = [note for note in notes if note.kind == "bad"]
    if urgent:
        return urgent[0].title if len(urgent) == 1 else f"{len(urgent)} things need you."
    if not running:
        return "Nothing runs."
    late = sum(row.state == "held" for row in running)
    if late:
        return f"{late} of {len(running)} open batches are held."
    return f"{len(running)} open {'batch' if len(running) == 1 else 'batches'}, none held."
