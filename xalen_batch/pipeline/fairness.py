"""Fairness between accounts: time in which an account could not be served is no credit to push the
others aside with.
"""

from uuid import UUID

from sqlalchemy import ScalarSelect, func, select, update
from sqlalchemy.orm import Session

from xalen_batch.models import Account, Batch
from xalen_batch.models.batches import window_is_open
from xalen_batch.states import BatchStatus


def forget_idle_time(session: Session, account_id: UUID) -> None:
    """Start an account no earlier than those at work."""
    session.execute(
        update(Account)
        .where(Account.id == account_id)
        .values(virtual_time=func.greatest(Account.virtual_time, func.coalesce(_at_work(), 0.0)))
        .execution_options(synchronize_session=False)
    )


def forget_waiting_time(session: Session) -> None:
    """Keep the accounts whose batches wait for their execution windows level with those at work."""
    waiting = (
        select(Account.id)
        .where(
            Account.id.in_(select(Batch.account_id).where(Batch.status == BatchStatus.IN_PROGRESS)),
            # Nobody at work is earlier than the earliest of them.
            Account.virtual_time < _at_work(),
        )
        .with_for_update(skip_locked=True, key_share=True)
    )
    session.execute(
        update(Account)
        .where(Account.id.in_(waiting))
        .values(virtual_time=_at_work())
        .execution_options(synchronize_session=False)
    )


def _at_work() -> ScalarSelect[float | None]:
    """The least virtual time of the accounts that can be served now; null where there is none."""
    served = select(Batch.account_id).where(
        Batch.status == BatchStatus.IN_PROGRESS, window_is_open()
    )
    return select(func.min(Account.virtual_time)).where(Account.id.in_(served)).scalar_subquery()
