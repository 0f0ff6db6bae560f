"""Fairness between accounts, by weighted fair queuing on virtual times.

A claim adds the number of lines over the account's weight to the account's virtual time, and serves
the account with the least. An account that was idle, or whose execution window was closed, must not
return with a low virtual time: its claims would come before all others until it has caught up.
"""

from uuid import UUID

from sqlalchemy import ScalarSelect, bindparam, func, select, update
from sqlalchemy.orm import Session

from xalen_batch.models import Account, Batch
from xalen_batch.models.base import table_of
from xalen_batch.models.batches import has_status, window_is_open
from xalen_batch.states import BatchStatus


def forget_idle_time(session: Session, account_id: UUID) -> None:
    """Raise an account's virtual time to the least one of the accounts that are served now."""
    session.execute(_FORGET_IDLE_TIME, {"account_id": account_id})


def forget_waiting_time(session: Session) -> None:
    """Do the same for accounts whose batches all wait for their execution windows."""
    waiting = (
        select(Account.id)
        .where(
            Account.id.in_(select(Batch.account_id).where(Batch.status == BatchStatus.IN_PROGRESS)),
            # No account that is served has a lower virtual time, so this finds none of them.
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
    """The least virtual time of the accounts that can be served now; null if there are none."""
    served = select(Batch.account_id).where(has_status(BatchStatus.IN_PROGRESS), window_is_open())
    return select(func.min(Account.virtual_time)).where(Account.id.in_(served)).scalar_subquery()


# Built once, since every batch runs it.
_ACCOUNTS = table_of(Account)
_FORGET_IDLE_TIME = (
    update(_ACCOUNTS)
    # Usually false, and then the row is not locked, which claims lock too.
    .where(_ACCOUNTS.c.id == bindparam("account_id"), _ACCOUNTS.c.virtual_time < _at_work())
    .values(virtual_time=_at_work())
)
