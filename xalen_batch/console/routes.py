"""Routes of pages: the session in the cookie, the CSRF token of forms, and errors as pages."""

import hmac
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial, wraps
from typing import Annotated, Any, Concatenate, ParamSpec
from urllib.parse import quote

from fastapi import Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from xalen_batch import db, log
from xalen_batch.accounts import sessions
from xalen_batch.accounts.accounts import Scope
from xalen_batch.accounts.sessions import Visitor
from xalen_batch.api import deps, errors, long_work
from xalen_batch.api.http import paths
from xalen_batch.console import views
from xalen_batch.errors import Forbidden, Unauthenticated, XalenError
from xalen_batch.ratelimit import account

logger = log.get(__name__)

PATH = "/console"
SIGN_IN = f"{PATH}/sign-in"
COOKIE = "xalen_console"
Asked = ParamSpec("Asked")
Page = Callable[Concatenate[Request, Session, Visitor, Asked], Response]
Token = Annotated[str, Form(max_length=200)]


class SignedOut(Unauthenticated):
    """A request without a session. A page then leads to the one that signs in."""


class PageRoute(APIRoute):
    """Answers errors with a page, and adds the headers of pages to each answer."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handle = super().get_route_handler()

        async def handle_page(request: Request) -> Response:
            try:
                answer: Response = await handle(request)
            except errors.EXPECTED as error:
                answer = await run_in_threadpool(failure, request, error)
            except Exception as error:
                logger.error(
                    "api.crashed",
                    method=paths.method(request.scope),
                    route=self.path,
                    **log.cause(error),
                )
                answer = await run_in_threadpool(failure, request, error)
            for name, value in views.HEADERS.items():
                answer.headers.setdefault(name, value)
            return answer

        return handle_page


def page(scope: Scope = Scope.READ, *, is_long: bool = False) -> Callable[[Page[Asked]], Any]:
    """Decorate a GET route, which takes the request, a session that only reads, and the visitor.

    `is_long`: it counts toward its account's long requests.
    """

    def decorate(route: Page[Asked]) -> Callable[..., Response]:
        @wraps(route)
        def run(request: Request, *args: Asked.args, **asked: Asked.kwargs) -> Response:
            with db.reading() as session:
                visitor = visit(request, session, scope)
                with long_work.admitted(visitor.caller) if is_long else nullcontext():
                    return route(request, session, visitor, *args, **asked)

        run.__signature__ = _signature(route)  # type: ignore[attr-defined]
        return run

    return decorate


def change(scope: Scope = Scope.SUBMIT, *, is_long: bool = False) -> Callable[[Page[Asked]], Any]:
    """Decorate a POST route, which takes the request, a transaction, and the visitor.

    Its form has to send the CSRF token of the session as `csrf`.
    """

    def decorate(route: Page[Asked]) -> Callable[..., Response]:
        @wraps(route)
        def run(
            request: Request, csrf: Token = "", *args: Asked.args, **asked: Asked.kwargs
        ) -> Response:
            with db.transaction() as session:
                visitor = visit(request, session, scope)
                check_csrf(visitor, csrf)
                account.admit_change(session, visitor.caller)
                with long_work.admitted(visitor.caller) if is_long else nullcontext():
                    return route(request, session, visitor, *args, **asked)

        run.__signature__ = _signature(  # type: ignore[attr-defined]
            route,
            inspect.Parameter("csrf", inspect.Parameter.KEYWORD_ONLY, default="", annotation=Token),
        )
        deps.admitting(run, partial(visit_briefly, scope=scope))
        return run

    return decorate


def visit_briefly(request: Request, scope: Scope) -> Visitor:
    """The visitor of a request, admitted in a short session of its own."""
    with db.reading() as session:
        return visit(request, session, scope)


def brief(scope: Scope = Scope.READ) -> Callable[[Callable[..., Response]], Any]:
    """Decorate a GET route that takes the request and the visitor, and no database session.

    For routes that take long, and must not hold a session meanwhile.
    """

    def decorate(route: Callable[..., Response]) -> Callable[..., Response]:
        @wraps(route)
        def run(request: Request, *args: Any, **asked: Any) -> Response:
            return route(request, visit_briefly(request, scope), *args, **asked)

        signature = inspect.signature(route)
        request, _, *asked = signature.parameters.values()
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[request, *asked]
        )
        return run

    return decorate


def _signature(route: Callable[..., Response], *more: inspect.Parameter) -> inspect.Signature:
    """The signature that FastAPI sees: without session and visitor, with `more`."""
    signature = inspect.signature(route)
    request, _, _, *asked = signature.parameters.values()
    asked = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in asked]
    first = request.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return signature.replace(parameters=[first, *asked, *more])


def visit(request: Request, session: Session, scope: Scope) -> Visitor:
    """The visitor of a request, whose key must have `scope`.

    Raises SignedOut without a valid session, and Forbidden without the scope.
    """
    token = request.cookies.get(COOKIE)
    if not token:
        raise SignedOut("Sign in with a key to see this page.")
    try:
        visitor = sessions.authenticate(session, token)
    except Unauthenticated as error:
        raise SignedOut(error.message) from error
    try:
        deps.admit(request, session, visitor.caller, scope)
    except Forbidden:
        raise Forbidden(
            f"The key of this session lacks the scope `{scope}`. Sign in with a key that has it."
        ) from None
    return visitor


def check_csrf(visitor: Visitor, sent: str) -> None:
    """Raise Forbidden unless a form was sent by a page of this session."""
    if not hmac.compare_digest(sent.encode(), visitor.csrf.encode()):
        raise Forbidden(
            "This form is not one of your session: it may be older than your sign-in. Open the page"
            " again, and send it from there. Nothing was changed.",
            code="csrf_refused",
        )


def to(path: str) -> Response:
    """Lead to another page with GET, after a form."""
    return RedirectResponse(path, 303)


def failure(request: Request, error: Exception) -> Response:
    """The answer to an error: the page to sign in, or a page that says what to do."""
    if isinstance(error, errors.BodyRefused):
        error = error.error
    if isinstance(error, SignedOut):
        return _signed_out(request)
    known = errors.translate(request, error)
    headers = {}
    if known.retry_after is not None:
        headers["retry-after"] = str(round(known.retry_after))
    answer = views.show(
        request, _known_visitor(request), "error.html", status=known.status, error=known
    )
    answer.headers.update(headers)
    return answer


def _signed_out(request: Request) -> Response:
    target = f"{request.url.path}?{request.url.query}".rstrip("?")
    if request.method != "GET":
        target = PATH
    address = f"{SIGN_IN}?next={quote(target, safe='')}"
    if request.headers.get("hx-request") == "true":
        # htmx would follow a redirect, and put the page to sign in into a part of this one.
        return HTMLResponse("", 401, {"hx-redirect": address})
    answer = RedirectResponse(address, 303)
    if COOKIE in request.cookies:
        answer.delete_cookie(COOKIE, path=PATH)
    return answer


def _known_visitor(request: Request) -> Visitor | None:
    """The visitor for the frame around an error; None if they cannot be read."""
    token = request.cookies.get(COOKIE)
    if not token:
        return None
    try:
        with db.reading() as session:
            return sessions.authenticate(session, token)
    except (XalenError, *errors.UNAVAILABLE):
        return None
