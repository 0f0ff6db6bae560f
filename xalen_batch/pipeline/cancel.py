"""Cancel: start no further line; what has finished is kept, delivered and billed."""

from sqlalchemy.orm import Session

from xalen_batch import db, ids, log
from xalen_batch.broker import Job
from xalen_batch.errors import NotCancellable
from xalen_batch.models import Batch
from xalen_batch.states import BATCH_MOVES, BatchStatus

logger = log.get(__name__)


def cancel(session: Session, batch: Batch) -> Batch:
    """Move a batch to cancelling; one that is cancelling already stays so. Raises NotCancellable for one that ended."""
    while batch.status != BatchStatus.CANCELLING:
        if BatchStatus.CANCELLING not in BATCH_MOVES[BatchStatus(batch.status)]:
            raise NotCancellable(f"Batch {ids.render('batch', batch.id)} is {batch.status} and cannot be cancelled any more.")
        if batch.move(session, BatchStatus.CANCELLING):
            logger.info("batch.cancelling", batch_id=batch.id.hex)
        else:
            session.refresh(batch)
    db.enqueue(session, Job.FINALIZE, batch.id.hex)
    return batch
