"""Due schedules: an instant has come, a waiting run may start, or the batch of a run has ended."""

from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, literal, or_, select, union_all
from sqlalchemy.orm import Session, aliased

from xalen_batch import db
from xalen_batch.accounts.accounts import Owner
from xalen_batch.models import Account, Batch, Schedule, ScheduleRun
from xalen_batch.schedules.rotation import DueSchedule
from xalen_batch.schedules.runs import Trigger
from xalen_batch.states import TERMINAL, RunState, ScheduleStatus


def is_any(session: Session) -> bool:
    """Whether any schedule is due. Each EXISTS stops at its first row."""
    return bool(session.scalar(_any()))


def read(session: Session) -> list[DueSchedule]:
    """All due schedules, those with the oldest instant first."""
    return [
        DueSchedule(id, Owner(account_id, livemode), only_waits)
        for id, account_id, livemode, only_waits in session.execute(_all())
    ]


def poll() -> list[DueSchedule]:
    """`read`, in a transaction of its own."""
    with db.reading() as session:
        return read(session)


# Cached: every worker polls each second, and building a statement costs more than running it.
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
    """One query for each reason to be due: an instant, a waiting run, an ended batch.

    A waiting run counts if neither a pause nor a running run of its schedule holds it. Schedules of
    a disabled account are due only for ended batches.
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
