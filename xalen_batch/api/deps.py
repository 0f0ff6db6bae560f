"""What routes ask for: who is calling, with a session or without one."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, Concatenate, ParamSpec

import orjson
from fastapi import Depends, Header, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from pydantic import BaseModel
from sqlalchemy.orm import Session

from xalen_batch import accounts, db
from xalen_batch.accounts import Caller, Scope
from xalen_batch.api import throttle
from xalen_batch.errors import Forbidden, TooManyRequests, Unauthenticated, XalenError

bearer = HTTPBearer(auto_error=False, description="A key of this server, `xln_test_…` or `xln_live_…`.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]

Asked = ParamSpec("Asked")
Shown = BaseModel | dict[str, Any] | Response

_scopes: dict[object, Scope] = {}


def calling(scope: Scope) -> Callable[[Callable[Concatenate[Session, Caller, Asked], Shown]], Callable[..., Response]]:
    """A route that is given a session and who calls, if their key has the scope. It has committed before its answer leaves.

    A route that changes something has one transaction, one that only reads none. Session, caller and the answer's JSON
    are all made in the thread that runs the route: as dependencies of FastAPI each would be a thread's errand of its
    own, which costs more than the work.
    """
    begin = db.transaction if scope is Scope.SUBMIT else db.reading

    def decorate(route: Callable[Concatenate[Session, Caller, Asked], Shown]) -> Callable[..., Response]:
        @wraps(route)
        def run(credentials: Credentials, *args: Asked.args, **asked: Asked.kwargs) -> Response:
            with begin() as session:
                secret = None if credentials is None else credentials.credentials
                return _rendered(route(session, _authenticate(session, secret, scope), *args, **asked))

        run.__signature__ = _asking(route)  # type: ignore[attr-defined]
        _scopes[run] = scope
        return run

    return decorate


def refusal(request: Request) -> XalenError | None:
    """Why its caller may not call a route: they are told that before what is wrong with their request. None if they may."""
    scope = _scopes.get(request.scope.get("endpoint"))
    if scope is None:
        return None
    kind, secret = get_authorization_scheme_param(request.headers.get("authorization"))
    try:
        with db.reading() as session:
            _authenticate(session, secret if kind.lower() == "bearer" else None, scope)
    except (Unauthenticated, Forbidden, TooManyRequests) as error:
        return error
    return None


def _asking(route: Callable[..., Shown]) -> inspect.Signature:
    """What FastAPI is to see of a route: credentials in the place of the session and the caller that it is given."""
    signature = inspect.signature(route)
    _, _, *asked = signature.parameters.values()
    credentials = inspect.Parameter("credentials", inspect.Parameter.KEYWORD_ONLY, annotation=Credentials)
    return signature.replace(parameters=[*asked, credentials])


def _rendered(shown: Shown) -> Response:
    if isinstance(shown, Response):
        return shown
    content = shown.model_dump_json() if isinstance(shown, BaseModel) else orjson.dumps(shown)
    return Response(content, media_type="application/json")


def calling_briefly(scope: Scope) -> Callable[[Credentials], Caller]:
    """Who calls, known from a session of its own: for what then takes long and holds none."""

    def caller(credentials: Credentials) -> Caller:
        with db.reading() as session:
            return _authenticate(session, None if credentials is None else credentials.credentials, scope)

    return caller


def _authenticate(session: Session, secret: str | None, scope: Scope) -> Caller:
    if not secret:
        raise Unauthenticated("No API key was provided. Send one as `Authorization: Bearer xln_test_…`.")
    caller = accounts.authenticate(session, secret)
    throttle.admit(session, caller)
    caller.require(scope)
    return caller


BriefSubmitter = Annotated[Caller, Depends(calling_briefly(Scope.SUBMIT))]
BriefReader = Annotated[Caller, Depends(calling_briefly(Scope.READ))]
IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="The same key with the same request creates one object, however often it is sent."),
]
