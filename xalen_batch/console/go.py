"""Where an id leads: the search field beside the navigation."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from xalen_batch import ids
from xalen_batch.accounts.sessions import Visitor
from xalen_batch.console import routes
from xalen_batch.console.routes import PATH, PageRoute
from xalen_batch.errors import QUOTED_CHARS, NotFound

router = APIRouter(prefix=PATH, route_class=PageRoute, include_in_schema=False)
PAGES: dict[ids.Kind, str] = {
    "batch": "batches",
    "sched": "schedules",
    "file": "files",
    "inv": "invoices",
    "whe": "settings/webhooks",
}


@router.get("/go")
@routes.page()
def go(
    request: Request,
    session: Session,
    visitor: Visitor,
    id: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """Lead to the page of an object; to its list's filter for anything else."""
    asked = id.strip()
    for kind, page in PAGES.items():
        if ids.parse(kind, asked) is not None:
            return routes.to(f"{PATH}/{page}/{asked}")
    known = ", ".join(ids.prefix(kind) + "…" for kind in PAGES)
    raise NotFound(f"{asked[:QUOTED_CHARS]!r} is not an id that has a page. Send one of {known}")
