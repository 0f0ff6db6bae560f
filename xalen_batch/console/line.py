"""One line of a batch: what was asked, what came of it, and how its amount was computed."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from xalen_batch.accounts.accounts import Scope
from xalen_batch.accounts.sessions import Visitor
from xalen_batch.api import long_work
from xalen_batch.api.lines import LineObject
from xalen_batch.console import routes, views
from xalen_batch.console.routes import PATH, PageRoute
from xalen_batch.results import explain
from xalen_batch.validation.fast_path import MAX_CUSTOM_ID

router = APIRouter(prefix=f"{PATH}/batches", route_class=PageRoute, include_in_schema=False)
# Characters of a request or an answer that a page shows; the files have all of them.
MOST_SHOWN = 12_000
# Bytes from which JSON is shown as it came: to indent megabytes takes seconds.
MOST_INDENTED = 200_000


@router.get("/{batch_id}/line")
@routes.brief()
def show_line(
    request: Request,
    visitor: Visitor,
    batch_id: str,
    id: Annotated[str, Query(max_length=MAX_CUSTOM_ID)] = "",
) -> Response:
    """The line with a custom id, as a page, or as the drawer beside the table of lines."""
    with long_work.admitted(visitor.caller):
        found = explain.of(visitor.caller, batch_id, id)
    line = LineObject.of(found, id)
    may_bill = Scope.BILLING in visitor.caller.scopes
    return views.show(
        request,
        visitor,
        "line.html",
        block="drawer",
        line=line,
        charge=line.charge if may_bill else None,
        failure=_failure(line),
        asked=_shown(found.request, line.request),
        answered=_shown(found.result, line.result),
        back=f"{PATH}/batches/{line.batch_id}#lines",
    )


def _failure(line: LineObject) -> str | None:
    """The message of the error with which the line ended."""
    if line.result is None or line.usage is not None:
        return None
    body = (line.result.get("response") or {}).get("body")
    error = line.result.get("error") or (body.get("error") if isinstance(body, dict) else None)
    message = error.get("message") if isinstance(error, dict) else None
    return message[:MOST_SHOWN] if isinstance(message, str) else None


def _shown(raw: bytes | None, parsed: Any) -> str | None:
    """A line as text: indented, unless it is long, and cut."""
    if raw is None:
        return None
    if parsed is not None and len(raw) < MOST_INDENTED:
        text = json.dumps(parsed, indent=2, ensure_ascii=False)
    else:
        text = raw[: 4 * MOST_SHOWN].decode("utf-8", "replace")
    # A lone surrogate has no UTF-8, in which pages are sent.
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= MOST_SHOWN:
        return text
    return f"{text[:MOST_SHOWN]}\n… {len(raw):,} bytes in all; the file has the rest"
