"""/v1/models"""

from fastapi import APIRouter

from xalen_batch import catalog
from xalen_batch.api.deps import BriefReader
from xalen_batch.api.schemas import ListObject, ModelObject
from xalen_batch.errors import NotFound

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
def list_models(caller: BriefReader) -> ListObject[ModelObject]:
    """The catalog."""
    return ListObject[ModelObject].of(
        [ModelObject.of(model) for model in catalog.models().values()], has_more=False
    )


@router.get("/{model_id:path}")
def retrieve_model(caller: BriefReader, model_id: str) -> ModelObject:
    model = catalog.models().get(model_id)
    if model is None:
        raise NotFound(
            f"The model {model_id[:100]!r} does not exist. GET /v1/models lists those that do.",
            param="model",
            code="model_not_found",
        )
    return ModelObject.of(model)
