"""Extension: the cost and the errors of a file, before a batch is created."""

import orjson
from fastapi import APIRouter, Response

from xalen_batch import catalog, storage
from xalen_batch.api import long_work
from xalen_batch.api.deps import BriefReader
from xalen_batch.api.http.responses import JSON
from xalen_batch.api.money_schemas import EstimateObject
from xalen_batch.api.schemas import EstimateRequest
from xalen_batch.batches import batches
from xalen_batch.config import settings
from xalen_batch.db import transaction
from xalen_batch.validation.estimate_file import estimate_file

router = APIRouter(prefix="/v1/batches", tags=["extensions"])


@router.post("/estimate", response_model=EstimateObject)
def create_estimate(body: EstimateRequest, caller: BriefReader) -> Response:
    """Lines, tokens and cost per model at batch price, and every faulty line.

    Runs and bills nothing.
    """
    with long_work.admitted(caller):
        with transaction() as session:
            file = batches.input_file(session, caller, body.input_file_id)
            offered = batches.offered(session, caller, body.endpoint)
        # Outside the transaction, because reading a file takes seconds.
        found = estimate_file(
            storage.key(file.id),
            endpoint=body.endpoint,
            models=catalog.models(),
            terms=offered,
            discount_rate=settings().batch_discount,
        )
    return Response(orjson.dumps(found.render()), media_type=JSON)
