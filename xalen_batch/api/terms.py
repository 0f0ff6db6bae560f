"""/v1/terms"""

from typing import Literal, Self

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from xalen_batch import catalog, money
from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.api.deps import calling
from xalen_batch.batches import batches
from xalen_batch.billing.terms import Terms
from xalen_batch.config import settings

router = APIRouter(prefix="/v1/terms", tags=["extensions"])


class ModelTerms(BaseModel):
    id: str
    endpoints: list[str]
    context_window: int = Field(description="Tokens.")
    price: dict[str, str] = Field(
        description=(
            "USD per million tokens, list price, by component. A model without any is refused."
        )
    )
    answered_by: Literal["openai", "simulated"] | None = Field(
        description=(
            "What its lines would be sent to: a model server, or the simulated model. Null: batches"
            " that name it are refused."
        )
    )

    @classmethod
    def of(cls, model: catalog.Model, terms: Terms) -> Self:
        return cls(
            id=model.id,
            endpoints=list(model.endpoints),
            context_window=model.context_window,
            price=dict(terms.prices.get(model.id, {})),
            answered_by=terms.backends.get(model.id),
        )


class TermsObject(BaseModel):
    """The models, prices and limits of a batch created now, for the account and mode of the key."""

    object: Literal["terms"] = "terms"
    livemode: bool
    currency: str = money.CURRENCY
    batch_discount: str = Field(description="Share of the list price that is taken off.")
    max_file_bytes: int = Field(description="Of a file that is uploaded in one request.")
    max_upload_bytes: int = Field(description="Of a file that is uploaded in parts.")
    max_batch_lines: int
    max_batch_inputs: int | None = Field(
        description="Most inputs of embeddings, over all lines of a batch; null: no limit."
    )
    max_line_bytes: int
    models: list[ModelTerms]


@router.get("")
@calling(Scope.READ)
def get_terms(session: Session, caller: Caller) -> TermsObject:
    """The models, prices and limits of a batch created now: a client can check a file with them,
    and estimate its cost, before it uploads it.
    """
    offered, config = batches.offered(session, caller), settings()
    return TermsObject(
        livemode=caller.livemode,
        batch_discount=str(config.batch_discount),
        max_file_bytes=config.max_file_bytes,
        max_upload_bytes=config.max_upload_bytes,
        max_batch_lines=config.max_batch_lines,
        max_batch_inputs=config.max_batch_inputs,
        max_line_bytes=config.max_line_bytes,
        models=[ModelTerms.of(model, offered) for model in catalog.models().values()],
    )
