"""Extension: /v1/api_keys, the keys of the caller's own account and mode.

None of these routes takes an Idempotency-Key: the answer would be stored, and it holds a secret.
"""

from datetime import UTC, timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Response
from sqlalchemy.orm import Session

from xalen_batch import db
from xalen_batch.accounts import keys
from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.api.deps import calling
from xalen_batch.api.http.responses import secret_for
from xalen_batch.api.key_schemas import (
    DeletedKey,
    KeyObject,
    KeyRequest,
    NewKeyObject,
    RotationRequest,
)
from xalen_batch.api.schemas import ListObject
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import ApiKey

router = APIRouter(prefix="/v1/api_keys", tags=["extensions"])


@router.get("")
@calling(Scope.ADMIN)
def list_keys(
    session: Session,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
) -> ListObject[KeyObject]:
    """Keys that can be used, newest first; never a secret."""
    page = keys.page(session, caller, limit=limit, after=after)
    return ListObject[KeyObject].of([KeyObject.of(key) for key in page.data], page.has_more)


@router.post("", response_model=NewKeyObject)
@calling(Scope.ADMIN)
def create_key(session: Session, caller: Caller, body: KeyRequest) -> Response:
    """Make a key. Its secret is in this answer and nowhere else."""
    expires_at = body.expires_at
    if expires_at is not None:
        expires_at = expires_at if expires_at.tzinfo else expires_at.replace(tzinfo=UTC)
        if expires_at <= db.now(session):
            raise InvalidRequest(
                f"expires_at: {expires_at.isoformat()} is over. Send a moment to come.",
                param="expires_at",
            )
    return _with_secret(
        caller,
        *keys.create(session, caller, name=body.name, scopes=body.scopes, expires_at=expires_at),
    )


@router.post("/{key_id}/rotate", response_model=NewKeyObject)
@calling(Scope.ADMIN)
def rotate_key(
    session: Session, caller: Caller, key_id: str, body: RotationRequest | None = None
) -> Response:
    """Make a key that takes the place of another, which expires after the overlap: by default in a
    day.
    """
    overlap = keys.OVERLAP if body is None else timedelta(seconds=body.overlap_seconds)
    return _with_secret(caller, *keys.rotate(session, keys.lock(session, key_id, caller), overlap))


@router.delete("/{key_id}")
@calling(Scope.ADMIN)
def delete_key(session: Session, caller: Caller, key_id: str) -> DeletedKey:
    """Refuse a key from now on, also if it is the caller's own."""
    keys.revoke(session, keys.lock(session, key_id, caller))
    return DeletedKey(id=key_id)


def _with_secret(caller: Caller, key: ApiKey, secret: str) -> Response:
    return secret_for(caller, NewKeyObject(**KeyObject.of(key).model_dump(), secret=secret))
