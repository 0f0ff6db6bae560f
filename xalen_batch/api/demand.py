"""/metrics and /v1/demand, for the operator's own tools; with the token of the settings."""

import secrets
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Response, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from pydantic import BaseModel, Field

from xalen_batch import db
from xalen_batch.batches import demand
from xalen_batch.config import settings
from xalen_batch.errors import NotFound, Unauthenticated

_scheme = HTTPBearer(
    auto_error=False, scheme_name="metricsToken", description="The server's XALEN_METRICS_TOKEN."
)
Token = Annotated[HTTPAuthorizationCredentials | None, Security(_scheme)]


def _operator(credentials: Token) -> None:
    """Raise Unauthenticated without the settings' token, and NotFound if they have none."""
    token = settings().metrics_token
    if token is None:
        raise NotFound("Nothing is here: the server has no XALEN_METRICS_TOKEN.")
    given = "" if credentials is None else credentials.credentials
    if not secrets.compare_digest(given.encode(), token.get_secret_value().encode()):
        raise Unauthenticated("Send the server's XALEN_METRICS_TOKEN as a Bearer token.")


router = APIRouter(tags=["operators"], dependencies=[Depends(_operator)])


class DemandObject(BaseModel):
    """Lines of batches in progress that have no result yet, of all accounts."""

    model: str
    livemode: bool
    due: str = Field(
        description="Time until their deadline: `overdue`, `1h`, `6h`, `24h` or `later`."
    )
    is_open: bool = Field(description="False while the execution window of their batch is closed.")
    batches: int
    lines: int
    input_tokens: int = Field(description="Of those lines, by our estimate.")
    oldest: datetime = Field(description="When the oldest of these batches was created.")


class DemandList(BaseModel):
    object: Literal["list"] = "list"
    data: list[DemandObject]


@router.get("/v1/demand")
def list_demand() -> DemandList:
    """The work that is left, for autoscalers: the same numbers as the SQL view `demand`."""
    with db.reading() as session:
        found = demand.of_all(session)
    return DemandList(data=[DemandObject(**row._asdict()) for row in found])


@router.get("/metrics", include_in_schema=False)
def metrics() -> Response:
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)
