"""Schedules, their runs, the requests in their inboxes, and the objects that runs have taken."""

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
    """A schedule's definition and its next fire.

    Callers lock the schedule's row before they change it or its runs.
    """

    __tablename__ = "schedules"
    __table_args__ = (
        # Batches and invoices refer to this key, so a schedule and its batches, invoices and file
        # share one account and mode.
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
    # A `schedules.definition.Definition` as JSON.
    definition: Mapped[dict[str, Any]]
    # The input or template file. The foreign key keeps it while the schedule exists.
    file_id: Mapped[UUID | None]
    status: Mapped[str] = mapped_column(server_default=ScheduleStatus.ACTIVE.value)
    # The next instant plus the jitter; null if paused, ended or deleted.
    next_fire_at: Mapped[datetime | None]
    # Failed runs since the last one that succeeded, or since it was resumed.
    failures: Mapped[int] = mapped_column(server_default="0")
    # Number of runs that ended in each state, {state: number}.
    run_counts: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    paused_at: Mapped[datetime | None]
    pause_note: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]

    def pause(self, now: datetime, note: str | None) -> None:
        self.status = ScheduleStatus.PAUSED.value
        self.paused_at, self.pause_note = now, note
        self.next_fire_at = None

    def aim(self, next_fire_at: datetime | None) -> None:
        """Set the next fire: the schedule is active, or ended if there is none."""
        self.status = (ScheduleStatus.ACTIVE if next_fire_at else ScheduleStatus.ENDED).value
        self.next_fire_at, self.paused_at, self.pause_note = next_fire_at, None, None

    def count(self, state: RunState, number: int = 1) -> None:
        self.run_counts = {
            **self.run_counts,
            state.value: self.run_counts.get(state.value, 0) + number,
        }


class ScheduleRun(Base):
    """A run: one instant of a schedule and its outcome. `batches.run_id` refers to it."""

    __tablename__ = "schedule_runs"
    __table_args__ = (
        # An instant fires once.
        UniqueConstraint("schedule_id", "scheduled_for"),
        # Batches, requests and objects refer to this key: their run is of their schedule.
        UniqueConstraint("schedule_id", "id"),
        Index(
            "ix_schedule_runs_open",
            "schedule_id",
            "scheduled_for",
            postgresql_where=text("state IN ('waiting', 'running')"),
        ),
        # Pages of the runs in one state, which may be few of many.
        Index("ix_schedule_runs_schedule_id_state_id", "schedule_id", "state", "id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    schedule_id: Mapped[UUID] = mapped_column(ForeignKey("schedules.id"))
    # The instant, without jitter; of a manual run the time of its request.
    scheduled_for: Mapped[datetime]
    # Of a manual run: the moment that its placeholders stand for, if not `scheduled_for`.
    as_of: Mapped[datetime | None]
    trigger: Mapped[str]
    state: Mapped[str]
    # The reason for its state: a code, and a sentence for people.
    reason: Mapped[str | None]
    message: Mapped[str | None]
    # The definition it runs with: a later change of the schedule leaves it as it is.
    definition: Mapped[dict[str, Any]]
    # Of a source: the objects it reads, in order ({"path", "size", "version"}). Assembling the
    # input file adds the "first_line" of each object.
    manifest: Mapped[list[dict[str, Any]] | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # The creation of its batch, and the end of the run.
    fired_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    @property
    def lag(self) -> float | None:
        """Seconds from the instant to the creation of its batch, with jitter and waiting."""
        if self.fired_at is None:
            return None
        return (self.fired_at - self.scheduled_for).total_seconds()

    def move(
        self,
        schedule: Schedule,
        to: RunState,
        now: datetime,
        *,
        reason: str | None = None,
        message: str | None = None,
    ) -> None:
        """Set the state, and count the run if it ends.

        Raises ValueError for a move that is not in RUN_MOVES: that is a bug of ours.
        """
        if to not in RUN_MOVES[RunState(self.state)]:
            raise ValueError(f"a run does not go from {self.state} to {to}")
        self.state, self.reason, self.message = to.value, reason, message
        if to is RunState.RUNNING:
            self.fired_at = now
        if to not in OPEN_RUNS:
            self.ended_at = now
            schedule.count(to)

    def wait(self, reason: str | None, message: str | None) -> None:
        """Keep waiting, and store the reason."""
        self.reason, self.message = reason, message

    def wait_again(self, schedule: Schedule, trigger: str, now: datetime) -> None:
        """Move a missed or skipped run back to waiting, with the schedule's present definition."""
        self.move(
            schedule,
            RunState.WAITING,
            now,
            reason="backfill",
            message=f"It was {self.state} before.",
        )
        self.trigger, self.definition = trigger, schedule.definition
        # Its catch-up window begins now.
        self.created_at, self.ended_at = now, None


class InboxRequest(Base):
    """A request in a schedule's inbox.

    It waits while `run_id` is null, then it is assigned to that run; the row is deleted once the
    request is in the run's input file.
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
    # Texts that the request asks to embed; 0 at other endpoints.
    inputs: Mapped[int] = mapped_column(server_default="0")
    run_id: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ConsumedObject(Base):
    """A version of a source's object that a run has taken. A rewritten object has a new version."""

    __tablename__ = "consumed_objects"
    __table_args__ = (
        ForeignKeyConstraint(
            ["run_id", "schedule_id"], ["schedule_runs.id", "schedule_runs.schedule_id"]
        ),
        Index("ix_consumed_objects_run_id", "run_id", postgresql_where=text("run_id IS NOT NULL")),
    )

    schedule_id: Mapped[UUID] = mapped_column(ForeignKey("schedules.id"), primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str] = mapped_column(primary_key=True)
    # Null if the run is forgotten.
    run_id: Mapped[UUID | None]
