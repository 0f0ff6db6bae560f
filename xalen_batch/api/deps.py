"""What routes ask for: a transaction, and who is calling."""

from collections.abc import Callable, Iterator
from typing import Annotated

from fastapi import Depends, Header
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from xalen_batch import accounts, db
from xalen_batch.accounts import Caller, Scope
from xalen_batch.errors import Unauthenticated

bearer = HTTPBearer(auto_error=False, description="A key of this server, `xln_test_…` or `xln_live_…`.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


def get_session() -> Iterator[Session]:
    with db.transaction() as session:
        yield session


# Function scope: the commit comes before the answer leaves, not after it.
Transaction = Annotated[Session, Depends(get_session, scope="function")]


def calling(scope: Scope) -> Callable[[Session, Credentials], Caller]:
    """Who calls, if their key has the scope; in the route's own transaction."""

    def caller(session: Transaction, credentials: Credentials) -> Caller:
        return _authenticate(session, credentials, scope)

    return caller


def calling_briefly(scope: Scope) -> Callable[[Credentials], Caller]:
    """Who calls, known from a transaction of its own: for what then takes long and holds none."""

    def caller(credentials: Credentials) -> Caller:
        with db.transaction() as session:
            return _authenticate(session, credentials, scope)

    return caller


def _authenticate(session: Session, credentials: HTTPAuthorizationCredentials | None, scope: Scope) -> Caller:
    if credentials is None:
        raise Unauthenticated("No API key was provided. Send one as `Authorization: Bearer xln_test_…`.")
    caller = accounts.authenticate(session, credentials.credentials)
    caller.require(scope)
    return caller


Submitter = Annotated[Caller, Depends(calling(Scope.SUBMIT))]
Reader = Annotated[Caller, Depends(calling(Scope.READ))]
BillingReader = Annotated[Caller, Depends(calling(Scope.BILLING))]
BriefSubmitter = Annotated[Caller, Depends(calling_briefly(Scope.SUBMIT))]
BriefReader = Annotated[Caller, Depends(calling_briefly(Scope.READ))]
IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="The same key with the same request creates one object, however often it is sent."),
]
