"""Dependencies of routes: the caller, with or without a database session."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import wraps
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar
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
Route = TypeVar("Route", bound=Callable[..., Any])
Shown = BaseModel | dict[str, Any] | Response

# The scope that each route asks for, by its function or by its dependency on a caller.
_scopes: dict[object, Scope] = {}
# What admits the caller of a route without an API key in its header, by the route's function.
_admitting: dict[object, Callable[[Request], object]] = {}
# Key of an ASGI scope: the caller of the request, once admitted.
CALLER = "xalen.caller"
# Key of an ASGI scope: the owner of the request's valid key, whether admitted or not.
IDENTIFIED = "xalen.identified"
WITHOUT_ADDRESS = "local"


def calling(
    scope: Scope, *, is_long: bool = False
) -> Callable[[Callable[Concatenate[Session, Caller, Asked], Shown]], Callable[..., Response]]:
    """Decorate a route that takes a session and the caller, whose key must have `scope`.

    A route that changes something runs in one transaction, which commits before the answer is sent;
    the others only read. Session, caller and JSON are made in the thread that runs the route: as
    FastAPI dependencies each would take a thread switch, which costs more than the work. `is_long`:
    the request counts toward its account's long requests.
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
            with failures_limited(request), begin() as session:
                secret = None if credentials is None else credentials.credentials
                caller = _authenticate(request, session, secret, scope)
                if is_change and request.method != "GET":
                    account.admit_change(session, caller)
                with long_work.admitted(caller) if is_long else nullcontext():
                    return _rendered(route(session, caller, *args, **asked), caller)

        run.__signature__ = _signature(route)  # type: ignore[attr-defined]
        _scopes[run] = scope
        return run

    return decorate


def caller_of(scope: Mapping[str, Any]) -> Caller | None:
    """The caller of a request, from its ASGI scope.

    None before the caller is admitted, and for routes that need no key.
    """
    caller: Caller | None = scope.get(CALLER)
    return caller


def identity_of(scope: Mapping[str, Any]) -> dict[str, UUID | bool]:
    """The account, mode and key of a request as log fields; empty without a valid key."""
    caller: Caller | None = scope.get(IDENTIFIED)
    if caller is None:
        return {}
    return {
        "account_id": caller.account_id,
        "livemode": caller.livemode,
        "key_id": caller.key_id,
    }


def refusal(request: Request) -> XalenError | None:
    """The authentication error of a request, or None if its caller is admitted.

    It precedes any error of the body.
    """
    if caller_of(request.scope) is not None:
        return None
    admits = _admitting.get(getattr(request.scope.get("route"), "endpoint", None))
    if admits is not None:
        try:
            admits(request)
        except (Unauthenticated, Forbidden, TooManyRequests) as error:
            return error
        return None
    scope = _scope(request)
    if scope is None:
        return None
    kind, secret = get_authorization_scheme_param(request.headers.get("authorization"))
    try:
        with failures_limited(request), db.reading() as session:
            _authenticate(request, session, secret if kind.lower() == "bearer" else None, scope)
    except (Unauthenticated, Forbidden, TooManyRequests) as error:
        return error
    return None


def _scope(request: Request) -> Scope | None:
    """The scope that a route asks for; None if it needs no key."""
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
def failures_limited(request: Request) -> Iterator[None]:
    """Count failed authentications by address (token bucket); above the limit, 429 replaces 401.

    Requests with a valid key are not counted, and never refused here.
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
    """The client's address for rate limits: an IPv4 address, or the /64 network of an IPv6 one.

    One site has a whole /64 network.
    """
    host = request.client.host[:100] if request.client else WITHOUT_ADDRESS
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or IPv6Network((int(address), 64), strict=False))


def _signature(route: Callable[..., Shown]) -> inspect.Signature:
    """The signature that FastAPI sees: request and credentials replace session and caller."""
    signature = inspect.signature(route)
    _, _, *asked = signature.parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    request = inspect.Parameter("request", keyword, annotation=Request)
    credentials = inspect.Parameter("credentials", keyword, annotation=Credentials)
    return signature.replace(parameters=[*asked, request, credentials])


def _rendered(shown: Shown, caller: Caller) -> Response:
    if isinstance(shown, Response):
        return shown
    if isinstance(shown, BaseModel):
        content = scopes.render(shown, caller.scopes)
    else:
        content = orjson.dumps(shown)
    return Response(content, media_type="application/json")


def calling_briefly(scope: Scope) -> Callable[[Request, Credentials], Caller]:
    """A dependency: the caller, authenticated in a short session of its own.

    For routes that take long, and must not hold a session meanwhile.
    """

    def caller(request: Request, credentials: Credentials) -> Caller:
        return authenticate_briefly(
            request, None if credentials is None else credentials.credentials, scope
        )

    _scopes[caller] = scope
    return caller


def authenticate_briefly(request: Request, secret: str | None, scope: Scope) -> Caller:
    """The caller of a request, authenticated in a short session of its own."""
    with failures_limited(request), db.reading() as session:
        return _authenticate(request, session, secret, scope)


def admitted(request: Request, caller: Caller) -> None:
    """Note the caller of a request that was admitted by what is known of its key."""
    budget.answers.refuse_if_over(caller)
    request.scope[IDENTIFIED] = request.scope[CALLER] = caller


def admitting(route: object, admits: Callable[[Request], object]) -> None:
    """Let `admits` admit the callers of a route before their bodies are read, or raise."""
    _admitting[route] = admits


def needs(scope: Scope) -> Callable[[Route], Route]:
    """Decorate a route that authenticates its caller by itself."""

    def decorate(route: Route) -> Route:
        _scopes[route] = scope
        return route

    return decorate


def _authenticate(request: Request, session: Session, secret: str | None, scope: Scope) -> Caller:
    """The caller, whose key must have `scope`. Takes from their rate limit once for each request.

    Called again after a body has arrived: its key may have been revoked meanwhile.
    """
    if not secret:
        raise Unauthenticated(
            "No API key was provided. Send one as `Authorization: Bearer xln_test_…`."
        )
    return admit(request, session, accounts.authenticate(session, secret), scope)


def admit(request: Request, session: Session, caller: Caller, scope: Scope) -> Caller:
    """Admit an authenticated caller, whose key must have `scope`, once for each request."""
    request.scope[IDENTIFIED] = caller
    if caller_of(request.scope) is None:
        account.admit(session, caller)
        budget.answers.refuse_if_over(caller)
    caller.require(scope)
    request.scope[CALLER] = caller
    return caller


BriefSubmitter = Annotated[Caller, Depends(calling_briefly(Scope.SUBMIT))]
BriefReader = Annotated[Caller, Depends(calling_briefly(Scope.READ))]
BriefAdmin = Annotated[Caller, Depends(calling_briefly(Scope.ADMIN))]
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
