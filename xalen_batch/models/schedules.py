"""Schedules, the instants they fired at, and the requests and objects that wait for or went into a
run.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch.models.base import Base
from xalen_batch.states import OPEN_RUNS, RUN_MOVES, RunState, ScheduleStatus


class Schedule(Base):
    """What its owner defined, and when it fires next.

    Whoever changes a schedule or its runs has locked its row.
    """

    __tablename__ = "schedules"
    __table_args__ = (
        # What batches and invoices point at, and the file that it reads: all of one account and
        # mode.
        UniqueConstraint("id", "account_id", "livemode"),
        ForeignKeyConstraint(
            ["file_id", "account_id", "livemode"],
            ["files.id", "files.account_id", "files.livemode"],
        ),
        Index(
            "ix_schedules_account_id_livemode_id",
            "account_id",
            "livemode",
            "id",
            postgresql_where=text("deleted_at IS NULL"),
        ),
        Index(
            "ix_schedules_next_fire_at",
            "next_fire_at",
            postgresql_where=text("next_fire_at IS NOT NULL"),
        ),
        CheckConstraint(
            "(next_fire_at IS NOT NULL) = (status = 'active' AND deleted_at IS NULL)",
            name="next_fire_at",
        ),
        Index("ix_schedules_file_id", "file_id", postgresql_where=text("file_id IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    livemode: Mapped[bool]
    name: Mapped[str]
    # When, what and how: a `schedules.definition.Definition` as JSON.
    definition: Mapped[dict[str, Any]]
    # The input or template file that it reads, which cannot go while the schedule is there.
    file_id: Mapped[UUID | None]
    status: Mapped[str] = mapped_column(server_default=ScheduleStatus.ACTIVE.value)
    # The next instant, its jitter included; null when it is paused, ended or deleted.
    next_fire_at: Mapped[datetime | None]
    # Failed runs since the last one that succeeded, or since it was resumed.
    failures: Mapped[int] = mapped_column(server_default="0")
    # How many runs ended in each state, {state: number}.
    run_counts: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    paused_at: Mapped[datetime | None]
    pause_note: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]

    def pause(self, now: datetime, note: str | None) -> None:
        self.status, self.paused_at, self.pause_note, self.next_fire_at = (
            ScheduleStatus.PAUSED.value,
            now,
            note,
            None,
        )

    def aim(self, next_fire_at: datetime | None) -> None:
        """Active until its next fire; ended if there is none."""
        self.status = (ScheduleStatus.ACTIVE if next_fire_at else ScheduleStatus.ENDED).value
        self.next_fire_at, self.paused_at, self.pause_note = next_fire_at, None, None

    def count(self, state: RunState, number: int = 1) -> None:
        self.run_counts = {
            **self.run_counts,
            state.value: self.run_counts.get(state.value, 0) + number,
        }


class ScheduleRun(Base):
    """One instant of a schedule, whatever became of it. Its batch, if it has one, names it."""

    __tablename__ = "schedule_runs"
    __table_args__ = (
        # What makes a second firing of an instant impossible.
        UniqueConstraint("schedule_id", "scheduled_for"),
        # What is of a run is of its schedule too: batches, requests and objects point at both.
        UniqueConstraint("schedule_id", "id"),
        Index(
            "ix_schedule_runs_open",
            "schedule_id",
            "scheduled_for",
            postgresql_where=text("state IN ('waiting', 'running')"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    schedule_id: Mapped[UUID] = mapped_column(ForeignKey("schedules.id"))
    # The instant by the schedule's clock, without jitter; of a manual run the moment it was asked
    # for.
    scheduled_for: Mapped[datetime]
    # The moment whose dates a manual run has, where that is another one.
    as_of: Mapped[datetime | None]
    trigger: Mapped[str]
    state: Mapped[str]
    # Why it is in its state: a code, and words for people.
    reason: Mapped[str | None]
    message: Mapped[str | None]
    # What it runs or ran with, whatever the schedule says by now.
    definition: Mapped[dict[str, Any]]
    # Of a source: the objects it reads, in order ({"path", "size", "version"}), each with its
    # "first_line" in the input file once that is put together.
    manifest: Mapped[list[dict[str, Any]] | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # When its batch was created, and when the run was over.
    fired_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    def move(
        self,
        schedule: Schedule,
        to: RunState,
        now: datetime,
        *,
        reason: str | None = None,
        message: str | None = None,
    ) -> None:
        """Move on and count it.

        Raises ValueError for a move that the table of moves does not have: that is a bug of ours.
        """
        if to not in RUN_MOVES[RunState(self.state)]:
            raise ValueError(f"a run does not go from {self.state} to {to}")
        self.state, self.reason, self.message = to.value, reason, message
        if to is RunState.RUNNING:
            self.fired_at = now
        if to not in OPEN_RUNS:
            self.ended_at = now
            schedule.count(to)

    def wait(self, reason: str, message: str) -> None:
        """Stay waiting, and say for what."""
        self.reason, self.message = reason, message

    def take_up(self, schedule: Schedule, trigger: str, now: datetime) -> None:
        """Let a run that was missed or skipped wait once more, with what its schedule says now."""
        self.move(
            schedule,
            RunState.WAITING,
            now,
            reason="backfill",
            message=f"It was {self.state} before.",
        )
        # How long it waits counts from now on.
        self.trigger, self.definition, self.created_at, self.ended_at = (
            trigger,
            schedule.definition,
            now,
            None,
        )


class InboxRequest(Base):
    """A line that waits for a schedule's next run; sealed when `run_id` is set, gone when it is in
    that run's file.
    """

    __tablename__ = "inbox_requests"
    __table_args__ = (
        ForeignKeyConstraint(
            ["run_id", "schedule_id"], ["schedule_runs.id", "schedule_runs.schedule_id"]
        ),
        Index(
            "uq_inbox_requests_open",
            "schedule_id",
            "custom_id",
            unique=True,
            postgresql_where=text("run_id IS NULL"),
        ),
        Index("ix_inbox_requests_run_id", "run_id", postgresql_where=text("run_id IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    schedule_id: Mapped[UUID] = mapped_column(ForeignKey("schedules.id"))
    custom_id: Mapped[str]
    # One line of JSON, without its newline.
    line: Mapped[bytes]
    run_id: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ConsumedObject(Base):
    """An object of a source that a run has taken; written again under its name, it has another
    version.
    """

    __tablename__ = "consumed_objects"
    __table_args__ = (
        ForeignKeyConstraint(
            ["run_id", "schedule_id"], ["schedule_runs.id", "schedule_runs.schedule_id"]
        ),
    )

    schedule_id: Mapped[UUID] = mapped_column(ForeignKey("schedules.id"), primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str] = mapped_column(primary_key=True)
    run_id: Mapped[UUID]
