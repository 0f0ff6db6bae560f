"""The page of one batch: its progress, its errors by code, its lines, and what belongs to it."""

from time import time
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from xalen_batch import db, files, ids
from xalen_batch.accounts.accounts import Scope
from xalen_batch.accounts.sessions import Visitor
from xalen_batch.api import batch_events
from xalen_batch.api import batches as api
from xalen_batch.api.schemas import BatchObject
from xalen_batch.api.webhook_schemas import DeliveryObject
from xalen_batch.batches import batches, outlook, retries, waits
from xalen_batch.billing import invoices, sums
from xalen_batch.console import routes, views
from xalen_batch.console.batch_rows import BatchRow, reason, state_of
from xalen_batch.console.routes import PATH, PageRoute
from xalen_batch.console.timeline import steps
from xalen_batch.models import Batch
from xalen_batch.models.files import FilePart
from xalen_batch.results import rows as results
from xalen_batch.states import TERMINAL, BatchStatus
from xalen_batch.webhooks import endpoints, history

router = APIRouter(prefix=f"{PATH}/batches", route_class=PageRoute, include_in_schema=False)
LINES_ON_PAGE = 20
# Deliveries of its own webhook that the page of a batch shows.
DELIVERIES = 5
After = Annotated[int, Query(ge=0, le=2**31)]


@router.get("/{batch_id}")
@routes.page()
def show_batch(
    request: Request,
    session: Session,
    visitor: Visitor,
    batch_id: str,
    after: After = 0,
    only: Annotated[str, Query(max_length=20)] = "",
) -> Response:
    """A batch. htmx asks for the part that it replaces, by the name of its target."""
    only = "failed" if only == "failed" else ""
    batch = batches.get(session, visitor.caller, batch_id)
    row, total = _row(session, visitor, batch)
    target = request.headers.get("hx-target")
    part = target if target in ("live", "lines") else None
    context: dict[str, Any] = {
        "row": row,
        "batch": row.of,
        "only": only,
    }
    if part != "live":
        found = results.page(
            session,
            batch,
            total=total,
            after=after,
            limit=LINES_ON_PAGE,
            is_failed=bool(only),
        )
        context |= {"lines": found.data, "lines_after": after}
        context["older"] = None
        if found.after is not None:
            query = {"after": found.after} | ({"only": only} if only else {})
            context["older"] = f"{PATH}/batches/{row.of.id}?{urlencode(query)}#lines"
    if part != "lines":
        context |= {
            "codes": outlook.errors_of(session, batch),
            "steps": steps(row.of),
            "is_billed": batch.status in TERMINAL and batch.status != BatchStatus.FAILED,
        }
    if part is None:
        context |= _around(session, visitor, batch)
    return views.show(request, visitor, "batch.html", block=part, **context)


def _row(session: Session, visitor: Visitor, batch: Batch) -> tuple[BatchRow, int]:
    """The batch with its outlook, and the number of its lines."""
    progress = batches.progress(session, [batch])[batch.id]
    shown = BatchObject.of(
        batch,
        progress,
        db.now(session) if batch.execution_window else None,
        waits.of_one(session, batch),
        outlook.of(session, batch, progress),
    )
    cost = None
    if Scope.BILLING in visitor.caller.scopes:
        of = invoices.totals if batch.status in TERMINAL else sums.charged_so_far
        cost = of(session, [batch.id]).get(batch.id)
    name = files.names(session, [batch.input_file_id]).get(batch.input_file_id)
    row = BatchRow(shown, name or shown.id, state_of(shown), reason(shown, int(time())), cost)
    return row, progress.total


def _around(session: Session, visitor: Visitor, batch: Batch) -> dict[str, object]:
    """What belongs to a batch: its retries, and the deliveries of its own webhook."""
    page = endpoints.page(
        session, visitor.caller, limit=1, after=None, batch_id=ids.render("batch", batch.id)
    )
    told = [
        DeliveryObject.of(each)
        for endpoint in page.data
        for each in history.page(session, endpoint, limit=DELIVERIES, after=None, state=None).data
    ]
    return {
        "retries": api.shown(session, retries.of(session, batch)),
        "webhook": page.data[0].url if page.data else None,
        "deliveries": told,
    }


@router.get("/{batch_id}/events")
@routes.brief()
def follow_batch(request: Request, visitor: Visitor, batch_id: str) -> Response:
    """The event stream of the API. The page then asks for its parts anew."""
    return batch_events.stream_batch_events(request, visitor.caller, batch_id)


@router.get("/{batch_id}/output")
@routes.brief()
def download_output(request: Request, visitor: Visitor, batch_id: str) -> Response:
    """The lines that have succeeded."""
    return api.results_so_far(request, visitor.caller, batch_id, FilePart.OUTPUT)


@router.get("/{batch_id}/errors")
@routes.brief()
def download_errors(request: Request, visitor: Visitor, batch_id: str) -> Response:
    """The lines that have failed."""
    return api.results_so_far(request, visitor.caller, batch_id, FilePart.ERROR)


@router.get("/{batch_id}/cancel")
@routes.page(Scope.SUBMIT)
def confirm_cancel(request: Request, session: Session, visitor: Visitor, batch_id: str) -> Response:
    """The effect of a cancel, and the form for it."""
    row, _ = _row(session, visitor, batches.get(session, visitor.caller, batch_id))
    counts = row.of.request_counts
    left = counts.total - counts.completed - counts.failed
    return views.show(
        request,
        visitor,
        "confirm.html",
        title=f"Cancel {row.name}",
        effect=(
            f"{left:,} lines are left, and no further one starts. {counts.completed:,} finished"
            " lines are kept and billed. This cannot be undone."
        ),
        names=[],
        action=f"{PATH}/batches/{row.of.id}/cancel",
        fields=[],
        verb="Cancel this batch",
        is_final=True,
        back=f"{PATH}/batches/{row.of.id}",
    )


@router.post("/{batch_id}/cancel")
@routes.change()
def cancel(request: Request, session: Session, visitor: Visitor, batch_id: str) -> Response:
    """Start no further line."""
    batches.cancel(session, batches.get(session, visitor.caller, batch_id))
    return routes.to(f"{PATH}/batches/{batch_id}")


@router.get("/{batch_id}/retry")
@routes.page(Scope.SUBMIT)
def confirm_retry(request: Request, session: Session, visitor: Visitor, batch_id: str) -> Response:
    """The effect of a retry, and the form for it."""
    row, _ = _row(session, visitor, batches.get(session, visitor.caller, batch_id))
    counts = row.of.request_counts
    lost = counts.failed + counts.expired + counts.cancelled
    return views.show(
        request,
        visitor,
        "confirm.html",
        title=f"Retry failed lines of {row.name}",
        effect=(
            f"Makes a new batch of the {lost:,} lines that failed, expired or were cancelled;"
            " invalid lines are left out. It is billed by itself, at the prices of this moment."
        ),
        names=[],
        action=f"{PATH}/batches/{row.of.id}/retry",
        fields=[],
        verb="Retry them",
        is_final=False,
        back=f"{PATH}/batches/{row.of.id}",
    )


@router.post("/{batch_id}/retry")
@routes.change()
def retry(request: Request, session: Session, visitor: Visitor, batch_id: str) -> Response:
    """Make a batch of the lines that did not succeed, and lead to it."""
    made = retries.create(session, visitor.caller, batch_id)
    return routes.to(f"{PATH}/batches/{ids.render('batch', made.id)}")
