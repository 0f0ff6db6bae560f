"""Due schedules: those with an instant that has come, a run that may start, or a run whose batch
has ended.
"""

from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import Select, bindparam, func, literal, or_, select, union_all
from sqlalchemy.orm import Session, aliased

from xalen_batch.accounts.accounts import Owner
from xalen_batch.models import Account, Batch, Schedule, ScheduleRun
from xalen_batch.schedules.rotation import Due
from xalen_batch.schedules.runs import Trigger
from xalen_batch.states import TERMINAL, RunState, ScheduleStatus

# The first half of the key of the advisory lock that one firing worker at a time holds for an
# account.
LOCK = 7261959


def is_any(session: Session) -> bool:
    """Whether any schedule has something to do. Each of its questions ends at the first row."""
    return bool(session.scalar(_any()))


def read(session: Session) -> list[Due]:
    """All that are due, those with the oldest instant first."""
    return [
        Due(id, Owner(account_id, livemode), only_waits)
        for id, account_id, livemode, only_waits in session.execute(_all())
    ]


def take(session: Session, owner: Owner) -> bool:
    """Keep an account's schedules for this transaction.

    False: another worker fires one of them now.
    """
    key = func.hashtext(bindparam("owner"))
    found = session.scalar(
        select(func.pg_try_advisory_xact_lock(LOCK, key)),
        {"owner": f"{owner.account_id} {owner.livemode}"},
    )
    return bool(found)


# Made once: every worker asks every second, and compiling these costs more than running them.
@cache
def _any() -> Select[bool]:
    return select(or_(*(rows.exists() for rows in _kinds())))


@cache
def _all() -> Select[UUID, UUID, bool, bool]:
    due = union_all(*_kinds()).subquery()
    grouped = (
        select(
            due.c.id,
            func.min(due.c.since).label("since"),
            func.bool_and(due.c.only_waits).label("only_waits"),
        )
        .group_by(due.c.id)
        .subquery()
    )
    return (
        select(Schedule.id, Schedule.account_id, Schedule.livemode, grouped.c.only_waits)
        .join(grouped, grouped.c.id == Schedule.id)
        .order_by(grouped.c.since)
    )


def _kinds() -> tuple[Select[*tuple[Any, ...]], ...]:
    """Schedules that fire; that have a run which waits, and which neither a pause nor a run of the
    schedule holds up; that have one that ends.

    Of a disabled account only the last kind.
    """
    is_enabled = (
        ~select(Account.id)
        .where(Account.id == Schedule.account_id, Account.disabled_at.is_not(None))
        .exists()
    )
    fires = select(
        Schedule.id.label("id"),
        Schedule.next_fire_at.label("since"),
        literal(False).label("only_waits"),
    ).where(Schedule.next_fire_at <= func.now(), is_enabled)
    running = aliased(ScheduleRun)
    is_busy = (
        select(running.id)
        .where(running.schedule_id == ScheduleRun.schedule_id, running.state == RunState.RUNNING)
        .exists()
    )
    of_runs = select(ScheduleRun.schedule_id.label("id"), ScheduleRun.scheduled_for.label("since"))
    waits = (
        of_runs.add_columns(literal(True).label("only_waits"))
        .join(Schedule, Schedule.id == ScheduleRun.schedule_id)
        .where(
            ScheduleRun.state == RunState.WAITING,
            or_(ScheduleRun.trigger != Trigger.SCHEDULE, Schedule.status != ScheduleStatus.PAUSED),
            or_(ScheduleRun.definition["overlap"].astext == "allow", ~is_busy),
            is_enabled,
        )
    )
    ends = (
        of_runs.add_columns(literal(False).label("only_waits"))
        .join(Batch, Batch.run_id == ScheduleRun.id)
        .where(ScheduleRun.state == RunState.RUNNING, Batch.status.in_(TERMINAL))
    )
    return fires, waits, ends
