"""The models that batches may name, with the prices in force."""

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from xalen_batch import catalog
from xalen_batch.accounts.sessions import Visitor
from xalen_batch.batches import batches
from xalen_batch.billing import prices
from xalen_batch.config import settings
from xalen_batch.console import routes, views
from xalen_batch.console.routes import PATH, PageRoute

router = APIRouter(prefix=f"{PATH}/models", route_class=PageRoute, include_in_schema=False)


@router.get("")
@routes.page()
def list_models(request: Request, session: Session, visitor: Visitor) -> Response:
    """The catalog, with the reason why this mode may not name a model."""
    offered = batches.offered(session, visitor.caller)
    refusals = {id: offered.refusal(id) for id in catalog.models()}
    return views.show(
        request,
        visitor,
        "models.html",
        models=list(catalog.models().values()),
        prices=prices.in_force(session, livemode=visitor.caller.livemode),
        backends=offered.backends,
        refusals={id: refusal.message for id, refusal in refusals.items() if refusal is not None},
        discount=settings().batch_discount,
    )
