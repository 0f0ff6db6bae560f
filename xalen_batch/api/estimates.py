"""Extension: the cost and the errors of a file, before a batch is created."""

import orjson
from fastapi import APIRouter, Response

from xalen_batch import catalog, storage
from xalen_batch.accounts.accounts import Caller
from xalen_batch.api import long_work
from xalen_batch.api.deps import BriefReader
from xalen_batch.api.http.responses import JSON
from xalen_batch.api.money_schemas import EstimateObject
from xalen_batch.api.schemas import EstimateRequest
from xalen_batch.batches import batches
from xalen_batch.config import settings
from xalen_batch.db import transaction
from xalen_batch.endpoints.names import Endpoint
from xalen_batch.validation.estimate import Estimate
from xalen_batch.validation.estimate_file import estimate_file

router = APIRouter(prefix="/v1/batches", tags=["extensions"])


@router.post("/estimate", response_model=EstimateObject)
def create_estimate(body: EstimateRequest, caller: BriefReader) -> Response:
    """Lines, tokens and cost per model at batch price, and every faulty line.

    Runs and bills nothing.
    """
    found = estimate(caller, body.input_file_id, body.endpoint)
    return Response(orjson.dumps(found.render()), media_type=JSON)


def estimate(caller: Caller, input_file_id: str, endpoint: Endpoint | None) -> Estimate:
    """The estimate of a file of the caller; counts toward their long requests.

    `endpoint` None: that of the file's first line. Raises InvalidRequest for a file that cannot be
    an input.
    """
    with long_work.admitted(caller):
        with transaction() as session:
            file = batches.input_file(session, caller, input_file_id)
            offered = batches.offered(session, caller, endpoint)
        # Outside the transaction, because reading a file takes seconds.
        return estimate_file(
            storage.key(file.id),
            endpoint=endpoint,
            models=catalog.models(),
            terms=offered,
            discount_rate=settings().batch_discount,
        )
