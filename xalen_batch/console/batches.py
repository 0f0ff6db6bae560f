"""The list of batches, and actions on a selection of them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from time import time
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request, Response
from sqlalchemy.orm import Session

from xalen_batch import catalog, ids
from xalen_batch.accounts.sessions import Visitor
from xalen_batch.batches import batches, lists, retries
from xalen_batch.batches.lists import BatchFilters
from xalen_batch.console import routes, views
from xalen_batch.console.batch_rows import rows
from xalen_batch.console.routes import PATH, PageRoute
from xalen_batch.errors import InvalidRequest, XalenError
from xalen_batch.fields import LONGEST_KEY, LONGEST_VALUE
from xalen_batch.models import Batch
from xalen_batch.states import BatchStatus

router = APIRouter(prefix=PATH, route_class=PageRoute, include_in_schema=False)
LIST = f"{PATH}/batches"
ON_PAGE = 25
# Most batches of one action.
MOST_CHOSEN = 100
PERIODS = {"1": "last day", "2": "last 2 days", "7": "last 7 days", "30": "last 30 days"}
Choice = Annotated[str, Query(max_length=200)]


@router.get("/batches")
@routes.page()
def list_batches(
    request: Request,
    session: Session,
    visitor: Visitor,
    status: Choice = "",
    model: Choice = "",
    days: Choice = "",
    schedule: Choice = "",
    note: Annotated[str, Query(max_length=LONGEST_KEY + LONGEST_VALUE + 1)] = "",
    after: Annotated[str | None, Query(max_length=100)] = None,
    did: Choice = "",
    n: Annotated[int, Query(ge=0, le=MOST_CHOSEN)] = 0,
    of: Annotated[int, Query(ge=0, le=MOST_CHOSEN)] = 0,
) -> Response:
    """Batches, the newest first. Filters are the fields of a form."""
    chosen = {"status": status, "model": model, "days": days, "schedule": schedule, "note": note}
    found = lists.page(
        session, visitor.caller, _filters(chosen), limit=ON_PAGE, order="desc", after=after
    )
    now = int(time())
    shown = rows(session, visitor, found.data, now)
    kept = {name: value for name, value in chosen.items() if value}
    following = None
    if found.has_more:
        following = f"{LIST}?{urlencode({**kept, 'after': shown[-1].of.id})}"
    return views.show(
        request,
        visitor,
        "batches.html",
        block="list",
        rows=shown,
        chosen=chosen,
        is_filtered=bool(kept) or after is not None,
        statuses=list(BatchStatus),
        models=list(catalog.models()),
        periods=PERIODS,
        following=following,
        did=did if did in ("cancel", "retry") else "",
        n=n,
        of=of,
        now=now,
    )


@router.post("/batches/act")
@routes.change()
def act(
    request: Request,
    session: Session,
    visitor: Visitor,
    action: Annotated[str, Form(max_length=20)] = "",
    ids: Annotated[list[str], Form(max_length=MOST_CHOSEN)] = [],  # noqa: B006
    sure: Annotated[str, Form(max_length=5)] = "",
) -> Response:
    """Cancel or retry a selection, after a page that states the effect."""
    if action not in ("cancel", "retry"):
        raise InvalidRequest("action: choose `cancel` or `retry`.", param="action")
    if not ids:
        raise InvalidRequest(
            "ids: no batch is chosen. Go back and tick at least one batch.", param="ids"
        )
    chosen = [batches.get(session, visitor.caller, id) for id in ids]
    if not sure:
        return _confirmation(request, session, visitor, action, chosen)
    done = 0
    for batch in chosen:
        try:
            with session.begin_nested():
                _apply(session, visitor, action, batch)
            done += 1
        except XalenError:
            # The page says how many of them could not be changed; each of them says why.
            continue
    return routes.to(f"{LIST}?{urlencode({'did': action, 'n': done, 'of': len(chosen)})}")


def _apply(session: Session, visitor: Visitor, action: str, batch: Batch) -> None:
    if action == "cancel":
        batches.cancel(session, batch)
    else:
        retries.create(session, visitor.caller, ids.render("batch", batch.id))


def _confirmation(
    request: Request, session: Session, visitor: Visitor, action: str, chosen: Sequence[Batch]
) -> Response:
    shown = rows(session, visitor, chosen, int(time()))
    if action == "cancel":
        able = [row for row in shown if row.may_cancel]
        effect = (
            "No further line starts. Finished lines are kept and billed. This cannot be undone."
        )
    else:
        able = [row for row in shown if row.may_retry]
        effect = (
            "Makes a new batch of the lines of each that failed, expired or were cancelled. It is"
            " billed by itself, at the prices of this moment."
        )
    if not able:
        raise InvalidRequest(
            "None of the chosen batches is in a state for this: only batches that run can be"
            " cancelled, and only lines of ended batches can be retried.",
            param="ids",
        )
    return views.show(
        request,
        visitor,
        "confirm.html",
        title=f"{'Cancel' if action == 'cancel' else 'Retry'} {len(able)} of {len(shown)} chosen",
        effect=effect,
        names=[f"{row.name} · {row.of.id}" for row in able],
        action=f"{LIST}/act",
        fields=[("action", action), ("sure", "yes"), *(("ids", row.of.id) for row in able)],
        verb="Cancel them" if action == "cancel" else "Retry them",
        is_final=action == "cancel",
        back=LIST,
    )


def _filters(chosen: dict[str, str]) -> BatchFilters:
    """Raises InvalidRequest, with the field, for a value that is none of its choices."""
    status, days, schedule, note = (chosen[name] for name in ("status", "days", "schedule", "note"))
    if status and status not in list(BatchStatus):
        raise InvalidRequest(f"status: choose one of {', '.join(BatchStatus)}.", param="status")
    if days and days not in PERIODS:
        raise InvalidRequest(f"days: choose one of {', '.join(PERIODS)}.", param="days")
    of_schedule = ids.parse("sched", schedule) if schedule else None
    if schedule and of_schedule is None:
        raise InvalidRequest("schedule: send the id of one, `sched_…`.", param="schedule")
    key, equals, value = note.partition("=")
    if note and (not equals or not key or "\0" in note):
        raise InvalidRequest("note: write it as `key=value`, such as `team=search`.", param="note")
    return BatchFilters(
        status=status or None,
        model=chosen["model"].replace("\0", "") or None,
        created_after=datetime.now(UTC) - timedelta(days=int(days)) if days else None,
        metadata={key: value} if note else {},
        schedule_id=of_schedule,
    )
