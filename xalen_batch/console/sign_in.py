"""The pages that open and end a session."""

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Form, Query, Request, Response

from xalen_batch import db
from xalen_batch.accounts import accounts, sessions
from xalen_batch.accounts.accounts import Scope
from xalen_batch.api import deps
from xalen_batch.console import routes, views
from xalen_batch.console.routes import COOKIE, PATH, SIGN_IN, PageRoute
from xalen_batch.errors import Forbidden, TooManyRequests, Unauthenticated

router = APIRouter(prefix=PATH, route_class=PageRoute, include_in_schema=False)
# Scopes of which a session needs one: without, no page would show anything.
USEFUL = {Scope.READ, Scope.BILLING}


@router.get("/sign-in")
def sign_in_page(request: Request, next: Annotated[str, Query(max_length=2000)] = PATH) -> Response:
    """The form that takes a key."""
    return views.show(request, None, "sign_in.html", next=_inside(next), error=None)


@router.post("/sign-in")
def sign_in(
    request: Request,
    key: Annotated[str, Form(max_length=300)] = "",
    next: Annotated[str, Form(max_length=2000)] = PATH,
) -> Response:
    """Open a session of a key. Failed attempts are counted by address, as those of the API are."""
    _refuse_from_elsewhere(request)
    try:
        with deps.failures_limited(request), db.transaction() as session:
            caller = accounts.authenticate(session, key.strip())
            if not USEFUL & caller.scopes:
                raise Forbidden(
                    "This key may neither read nor see invoices. Sign in with a key that has the"
                    " scope `read` or `billing`."
                )
            token = sessions.open(session, caller)
    except (Unauthenticated, Forbidden, TooManyRequests) as error:
        return views.show(
            request, None, "sign_in.html", status=error.status, next=_inside(next), error=error
        )
    path = _inside(next)
    if path == PATH and Scope.READ not in caller.scopes:
        path = f"{PATH}/invoices"
    return _signed_in(request, token, path)


@router.get("/sign-in/{token}")
def sign_in_by_link(request: Request, token: str) -> Response:
    """Open a session by a link that `up` prints, once."""
    try:
        with deps.failures_limited(request), db.transaction() as session:
            opened = sessions.redeem(session, token)
    except (Unauthenticated, Forbidden, TooManyRequests) as error:
        return views.show(
            request, None, "sign_in.html", status=error.status, next=PATH, error=error
        )
    return _signed_in(request, opened, PATH)


@router.post("/sign-out")
def sign_out(request: Request, csrf: routes.Token = "") -> Response:
    """End the session."""
    with db.transaction() as session:
        token = request.cookies.get(COOKIE, "")
        try:
            visitor = sessions.authenticate(session, token)
        except Unauthenticated:
            # The session has ended already.
            return routes.to(SIGN_IN)
        routes.check_csrf(visitor, csrf)
        sessions.close(session, token)
    answer = routes.to(SIGN_IN)
    answer.delete_cookie(COOKIE, path=PATH)
    return answer


def _signed_in(request: Request, token: str, path: str) -> Response:
    answer = routes.to(path)
    answer.set_cookie(
        COOKIE,
        token,
        max_age=int(sessions.SESSION_LIFE.total_seconds()),
        path=PATH,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return answer


def _inside(path: str) -> str:
    """A path of the console, to which a sign-in leads; the overview in place of any other."""
    is_inside = path == PATH or path.startswith((f"{PATH}/", f"{PATH}?"))
    is_plain = path.isascii() and path.isprintable() and "\\" not in path and "//" not in path
    return path if is_inside and is_plain and not path.startswith(SIGN_IN) else PATH


def _refuse_from_elsewhere(request: Request) -> None:
    """Refuse a form of another site, which would sign a browser in with a key of its own.

    Before the sign-in there is no session to which a CSRF token could belong. Browsers send
    Origin with each POST.
    """
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise Forbidden(
            "This form was sent by a page of another site. Open the console's own page to sign in.",
            code="csrf_refused",
        )
