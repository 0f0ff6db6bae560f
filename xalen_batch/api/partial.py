"""Extension: a batch's output and errors, readable while it runs."""

from fastapi import APIRouter, Response

from xalen_batch import batches, files, ids, results
from xalen_batch.accounts.accounts import Caller
from xalen_batch.api.deps import BriefReader
from xalen_batch.api.description import content
from xalen_batch.api.http.responses import download
from xalen_batch.batches import Progress
from xalen_batch.db import transaction
from xalen_batch.models import Batch, File
from xalen_batch.models.files import FilePart
from xalen_batch.states import BatchStatus

router = APIRouter(prefix="/v1/batches", tags=["extensions"])
LINES = content("Lines as JSON, one on each; headers say how many of the batch are done.")


@router.get("/{batch_id}/output", response_class=Response, responses=LINES)
def get_batch_output(caller: BriefReader, batch_id: str) -> Response:
    """The lines that succeeded so far, in the order of the input; headers say how far it goes."""
    return _read(caller, batch_id, FilePart.OUTPUT)


@router.get("/{batch_id}/errors", response_class=Response, responses=LINES)
def get_batch_errors(caller: BriefReader, batch_id: str) -> Response:
    """The lines that failed so far, in the order of the input; headers say how far it goes."""
    return _read(caller, batch_id, FilePart.ERROR)


def _read(caller: Caller, batch_id: str, part: FilePart) -> Response:
    with transaction() as session:
        batch = batches.get(session, caller, batch_id)
        progress = batches.progress(session, [batch])[batch.id]
        file_id = batch.output_file_id if part == FilePart.OUTPUT else batch.error_file_id
        # A file that was deleted or has expired takes its lines with it.
        file = None if file_id is None else files.get(session, caller, ids.render("file", file_id))
    return download(
        results.chunks(batch.id, part),
        f"{batch_id}_{part.value}.jsonl",
        size=_size(batch, file),
        headers=_how_far(batch, progress),
    )


def _size(batch: Batch, file: File | None) -> int | None:
    if file is not None:
        return file.size
    return 0 if BatchStatus(batch.status).is_terminal else None


def _how_far(batch: Batch, progress: Progress) -> dict[str, str]:
    return {
        "x-batch-complete": str(BatchStatus(batch.status).is_terminal).lower(),
        "x-batch-lines-done": str(progress.done),
        "x-batch-lines-total": str(progress.total),
    }
