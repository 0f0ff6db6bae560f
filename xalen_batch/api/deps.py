"""What routes ask for: who is calling, with a session or without one."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import wraps
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Annotated, Any, Concatenate, ParamSpec
from uuid import UUID

import orjson
from fastapi import Depends, Header, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from pydantic import BaseModel
from sqlalchemy.orm import Session

from xalen_batch import db, log
from xalen_batch.accounts import accounts
from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.api import long_work, scopes
from xalen_batch.api.http import budget
from xalen_batch.config import settings
from xalen_batch.errors import Forbidden, TooManyRequests, Unauthenticated, XalenError
from xalen_batch.ratelimit import account

logger = log.get(__name__)

bearer = HTTPBearer(
    auto_error=False, description="A key of this server, `xln_test_…` or `xln_live_…`."
)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]

Asked = ParamSpec("Asked")
Shown = BaseModel | dict[str, Any] | Response

# By routes, and by the dependencies of those that hold no session.
_scopes: dict[object, Scope] = {}
# Where an ASGI scope has the caller of its request, once admitted.
CALLER = "xalen.caller"
# And whose key it came with, admitted or not.
IDENTIFIED = "xalen.identified"
WITHOUT_ADDRESS = "local"


def calling(
    scope: Scope, *, is_long: bool = False
) -> Callable[[Callable[Concatenate[Session, Caller, Asked], Shown]], Callable[..., Response]]:
    """A route that is given a session and who calls, if their key has the scope. It has committed
    before its answer leaves.

    A route that changes something has one transaction, one that only reads none. Session, caller
    and the answer's JSON are all made in the thread that runs the route: as dependencies of FastAPI
    each would be a thread's errand of its own, which costs more than the work. `is_long`: it counts
    among its account's requests that take long.
    """
    is_change = scope not in (Scope.READ, Scope.BILLING)
    begin = db.transaction if is_change else db.reading

    def decorate(
        route: Callable[Concatenate[Session, Caller, Asked], Shown],
    ) -> Callable[..., Response]:
        @wraps(route)
        def run(
            request: Request, credentials: Credentials, *args: Asked.args, **asked: Asked.kwargs
        ) -> Response:
            with _counted(request), begin() as session:
                secret = None if credentials is None else credentials.credentials
                caller = _authenticate(request, session, secret, scope)
                if is_change and request.method != "GET":
                    account.admit_change(session, caller)
                with long_work.admitted(caller) if is_long else nullcontext():
                    return _rendered(route(session, caller, *args, **asked), caller)

        run.__signature__ = _asking(route)  # type: ignore[attr-defined]
        _scopes[run] = scope
        return run

    return decorate


def caller_of(scope: Mapping[str, Any]) -> Caller | None:
    """The caller of a request, from its ASGI scope.

    None: not admitted yet, or the route asks for no key.
    """
    caller: Caller | None = scope.get(CALLER)
    return caller


def identity_of(scope: Mapping[str, Any]) -> dict[str, UUID | bool]:
    """The account, mode and key of a request as fields of a log event; empty if it came without a
    valid key.
    """
    caller: Caller | None = scope.get(IDENTIFIED)
    return (
        {}
        if caller is None
        else {"account_id": caller.account_id, "livemode": caller.livemode, "key_id": caller.key_id}
    )


def refusal(request: Request) -> XalenError | None:
    """The error of a caller who may not call a route, which comes before any error of the request.

    None if they may.
    """
    scope = _scope(request)
    if scope is None or caller_of(request.scope) is not None:
        return None
    kind, secret = get_authorization_scheme_param(request.headers.get("authorization"))
    try:
        with _counted(request), db.reading() as session:
            _authenticate(request, session, secret if kind.lower() == "bearer" else None, scope)
    except (Unauthenticated, Forbidden, TooManyRequests) as error:
        return error
    return None


def _scope(request: Request) -> Scope | None:
    """What a key must be for to be let in by a route. None: it asks for no key."""
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return None
    asked: list[object] = [route.endpoint]
    dependants = list(route.dependant.dependencies)
    while dependants:
        dependant = dependants.pop()
        asked.append(dependant.call)
        dependants += dependant.dependencies
    return next((_scopes[call] for call in asked if call in _scopes), None)


@contextmanager
def _counted(request: Request) -> Iterator[None]:
    """Answer 429 in the place of 401 to an address that has had enough of them.

    A valid key is never asked about.
    """
    try:
        yield
    except Unauthenticated:
        address = _address(request)
        wait = account.draw(
            f"failures:{address}", settings().failed_auth_per_minute, seconds=60
        ).wait
        if not wait:
            raise
        logger.warning("authentication.limited", address=address)
        raise TooManyRequests(
            "Too many requests without a valid API key came from your address. Send a valid one,"
            f" which is answered at any time, or wait {math.ceil(wait)} s.",
            retry_after=wait,
        ) from None


def _address(request: Request) -> str:
    """Where a request came from, as far as one client goes: of an IPv6 address its network, which
    is one site's.
    """
    host = request.client.host[:100] if request.client else WITHOUT_ADDRESS
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or IPv6Network((int(address), 64), strict=False))


def _asking(route: Callable[..., Shown]) -> inspect.Signature:
    """What FastAPI is to see of a route: request and credentials in the place of the session and
    the caller that it is given.
    """
    signature = inspect.signature(route)
    _, _, *asked = signature.parameters.values()
    given = (("request", Request), ("credentials", Credentials))
    return signature.replace(
        parameters=[
            *asked,
            *(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind)
                for name, kind in given
            ),
        ]
    )


def _rendered(shown: Shown, caller: Caller) -> Response:
    if isinstance(shown, Response):
        return shown
    content = (
        scopes.render(shown, caller.scopes) if isinstance(shown, BaseModel) else orjson.dumps(shown)
    )
    return Response(content, media_type="application/json")


def calling_briefly(scope: Scope) -> Callable[[Request, Credentials], Caller]:
    """Who calls, known from a session of its own: for what then takes long and holds none."""

    def caller(request: Request, credentials: Credentials) -> Caller:
        with _counted(request), db.reading() as session:
            return _authenticate(
                request, session, None if credentials is None else credentials.credentials, scope
            )

    _scopes[caller] = scope
    return caller


def _authenticate(request: Request, session: Session, secret: str | None, scope: Scope) -> Caller:
    """Who calls.

    Asked again once a body has come, whose key may have been revoked meanwhile; a request counts
    once.
    """
    if not secret:
        raise Unauthenticated(
            "No API key was provided. Send one as `Authorization: Bearer xln_test_…`."
        )
    caller = accounts.authenticate(session, secret)
    request.scope[IDENTIFIED] = caller
    if caller_of(request.scope) is None:
        account.admit(session, caller)
        budget.answers.refuse_if_over(caller)
    caller.require(scope)
    request.scope[CALLER] = caller
    return caller


BriefSubmitter = Annotated[Caller, Depends(calling_briefly(Scope.SUBMIT))]
BriefReader = Annotated[Caller, Depends(calling_briefly(Scope.READ))]
BriefBiller = Annotated[Caller, Depends(calling_briefly(Scope.BILLING))]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description=(
            "The same key with the same request creates one object, however often it is sent."
        ),
    ),
]
