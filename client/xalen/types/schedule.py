"""Schedules and their runs: the fields of requests, and the objects of answers."""

from datetime import datetime
from typing import Literal, NotRequired, Required, TypedDict

from openai import BaseModel

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
OnInvalid = Literal["fail", "skip"]
OnEmpty = Literal["skip", "fail"]
Overlap = Literal["skip", "buffer_one", "allow", "cancel_previous"]
Misfire = Literal["latest", "all", "none"]
ScheduleStatus = Literal["active", "paused", "ended"]
RunState = Literal["waiting", "running", "succeeded", "failed", "cancelled", "skipped", "missed"]
Trigger = Literal["schedule", "manual", "backfill"]
# ISO 8601 or Unix seconds; a time without an offset is on the schedule's clock.
Time = datetime | str | float


class ExecutionWindow(TypedDict):
    """The hours in which lines may start, on the wall clock of a time zone."""

    # `22:00`
    start: str
    end: str
    # Days on which it opens; all by default.
    days: NotRequired[list[Day]]
    # An IANA name; UTC by default, and in a schedule its own.
    timezone: NotRequired[str]


class ExpiresAfter(TypedDict):
    anchor: Literal["created_at"]
    seconds: int


class Source(TypedDict, total=False):
    """Objects in a folder when the schedule fires: `prefix` or `folder` says where."""

    prefix: str | None
    folder: str | None
    pattern: str
    on_empty: OnEmpty
    ready_marker: str | None
    repeat: bool


class Inbox(TypedDict, total=False):
    on_empty: OnEmpty


class When(TypedDict, total=False):
    """The fields that decide when a schedule fires, beside `cron`."""

    # An IANA name; UTC by default.
    timezone: str | None
    starts_at: Time | None
    ends_at: Time | None
    # Most seconds between an instant and its fire.
    jitter: int | None


class PreviewFields(When, total=False):
    # Five fields, or `@daily` and the like.
    cron: Required[str]


class Rules(When, total=False):
    """A schedule has exactly one of `input_file_id`, `template_file_id`, `source` and `inbox`."""

    input_file_id: str | None
    template_file_id: str | None
    source: Source | None
    inbox: Inbox | None
    completion_window: str | None
    metadata: dict[str, str] | None
    output_expires_after: ExpiresAfter | None
    execution_window: ExecutionWindow | None
    on_invalid: OnInvalid | None
    overlap: Overlap | None
    misfire: Misfire | None
    misfire_limit: int | None
    catch_up_window: str | None
    pause_on_failure: int | None


class NewSchedule(Rules, total=False):
    name: Required[str]
    cron: Required[str]
    endpoint: Required[str]


class ScheduleChanges(Rules, total=False):
    """None resets a field to its default."""

    name: str
    cron: str
    endpoint: str


class ManifestEntry(BaseModel):
    path: str
    size: int
    version: str


class ScheduleRun(BaseModel):
    """A run: one instant of a schedule, and its outcome. Times are Unix seconds."""

    id: str
    object: Literal["schedule.run"]
    schedule_id: str
    scheduled_for: int
    scheduled_local: str
    """The same on the clock of the run's zone, ISO 8601."""
    timezone: str
    as_of: int | None
    """Of a manual run: the moment of its placeholders, if not `scheduled_for`."""
    fired_at: int | None
    lag: float | None
    """Seconds from the instant to its batch."""
    ended_at: int | None
    trigger: Trigger
    state: RunState
    reason: str | None
    """Why it is in its state, as a code; `message` has it in words."""
    message: str | None
    batch_id: str | None
    cost: str | None
    """Exact USD, once there is an invoice; None for a key without the scope `billing`."""
    manifest: list[ManifestEntry] | None


class RunCounts(BaseModel):
    succeeded: int
    failed: int
    cancelled: int
    skipped: int
    missed: int


class RecentRun(BaseModel):
    id: str
    scheduled_for: int
    state: RunState


class ScheduleSource(BaseModel):
    prefix: str | None
    folder: str | None
    pattern: str
    on_empty: OnEmpty
    ready_marker: str | None
    repeat: bool


class ScheduleInbox(BaseModel):
    on_empty: OnEmpty
    pending: int
    """Requests that wait for the next run."""


class ScheduleWindow(BaseModel):
    start: str
    end: str
    days: list[Day]
    timezone: str


class ScheduleExpiry(BaseModel):
    anchor: Literal["created_at"]
    seconds: int


class Schedule(BaseModel):
    """A schedule: its definition in force, its state, and its latest runs."""

    id: str
    object: Literal["schedule"]
    name: str
    status: ScheduleStatus
    paused_at: int | None
    pause_note: str | None
    cron: str
    description: str
    """The cron expression in words."""
    timezone: str
    starts_at: int | None
    ends_at: int | None
    jitter: int
    next_fire_at: int | None
    """With its jitter. Unix seconds; None when it does not fire."""
    next_fire_local: str | None
    input_file_id: str | None
    template_file_id: str | None
    source: ScheduleSource | None
    source_location: str | None
    inbox: ScheduleInbox | None
    endpoint: str
    completion_window: str
    metadata: dict[str, str]
    output_expires_after: ScheduleExpiry | None
    execution_window: ScheduleWindow | None
    on_invalid: OnInvalid
    overlap: Overlap
    misfire: Misfire
    misfire_limit: int
    catch_up_window: str
    pause_on_failure: int | None
    failures: int
    run_counts: RunCounts
    recent_runs: list[RecentRun]
    """Its latest instants, the oldest first."""
    last_run: ScheduleRun | None
    created_at: int
    updated_at: int


class DeletedSchedule(BaseModel):
    id: str
    object: Literal["schedule"]
    deleted: Literal[True]
    discarded_requests: int


class Fire(BaseModel):
    """An instant at which a schedule fires."""

    scheduled_for: int
    local: str
    utc: str
    utc_offset: str


class SchedulePreview(BaseModel):
    object: Literal["schedule.preview"]
    cron: str
    description: str
    timezone: str
    jitter_delay: int | None
    """Seconds by which it fires after these instants; None before it is saved."""
    fires: list[Fire]


class AddedRequests(BaseModel):
    """The result of sending requests to an inbox."""

    object: Literal["schedule.requests"]
    schedule_id: str
    accepted: int
    known: int
    """Requests that waited already with the same content."""
    pending: int
    next_fire_at: int | None
