"""Schemas of schedules and runs in the API. Every key is always present, and may be null."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, RootModel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from xalen_batch import ids, money
from xalen_batch.accounts.accounts import Owner
from xalen_batch.api.schemas import Identified
from xalen_batch.api.scopes import Scoped
from xalen_batch.fields import ExpiresAfter, Text, Time
from xalen_batch.models import Schedule, ScheduleRun
from xalen_batch.schedules import sources
from xalen_batch.schedules.definition import Definition, OnEmpty, Source
from xalen_batch.schedules.inbox import Added
from xalen_batch.schedules.runs import Outcome, Trigger
from xalen_batch.states import RunState, ScheduleStatus
from xalen_batch.timezones import zone
from xalen_batch.windows import ExecutionWindow


class ManifestEntry(BaseModel):
    path: str
    size: int = Field(description="Bytes.")
    version: str = Field(description="Changes whenever the object does.")


class RunObject(Identified, Scoped):
    """A run: one instant of a schedule, and its outcome."""

    # Shown to a key of any scope: a key that starts a run must be able to cancel its batch.
    always = frozenset({"id", "object", "schedule_id", "state", "batch_id"})
    priced = frozenset({"cost"})

    object: Literal["schedule.run"] = "schedule.run"
    schedule_id: str
    scheduled_for: int = Field(
        description=(
            "The instant, without jitter; of a manual run the time of its request. Unix seconds."
        )
    )
    scheduled_local: str = Field(
        description="The same on the clock of the run's zone, ISO 8601.",
        examples=["2026-11-25T02:30:00+01:00"],
    )
    timezone: str
    as_of: int | None = Field(
        description="Of a manual run: the moment of its placeholders, if not `scheduled_for`."
    )
    fired_at: int | None = Field(description="When its batch was created.")
    lag: float | None = Field(description="Seconds from the instant to its batch.")
    ended_at: int | None
    trigger: Trigger
    state: RunState
    reason: str | None = Field(
        description="Why it is in its state, as a code.", examples=["overlap"]
    )
    message: str | None = Field(description="The same in words.")
    batch_id: str | None
    cost: str | None = Field(
        description=(
            "Exact USD, once its batch has an invoice; null for a key without the scope `billing`."
        ),
        examples=["0.80485307"],
    )
    manifest: list[ManifestEntry] | None = Field(
        description="Of a source: the objects it reads, in order."
    )

    @classmethod
    def of(cls, run: ScheduleRun, outcome: Outcome) -> Self:
        reason, message = run.reason, run.message
        if run.state == RunState.RUNNING and outcome.opens_at is not None:
            opens = _local(outcome.opens_at, run.definition["timezone"])
            reason, message = (
                "execution_window",
                f"Its batch waits for its execution window, which opens {opens}.",
            )
        return cls(
            id=ids.render("run", run.id),
            schedule_id=ids.render("sched", run.schedule_id),
            scheduled_for=_unix(run.scheduled_for),
            scheduled_local=_local(run.scheduled_for, run.definition["timezone"]),
            timezone=run.definition["timezone"],
            as_of=run.as_of and _unix(run.as_of),
            fired_at=run.fired_at and _unix(run.fired_at),
            lag=run.lag,
            ended_at=run.ended_at and _unix(run.ended_at),
            trigger=Trigger(run.trigger),
            state=RunState(run.state),
            reason=reason,
            message=message,
            batch_id=outcome.batch_id and ids.render("batch", outcome.batch_id),
            cost=None if outcome.cost is None else money.render(outcome.cost),
            manifest=(
                None if run.manifest is None else [ManifestEntry(**entry) for entry in run.manifest]
            ),
        )


class RunCounts(BaseModel):
    """Number of runs that ended in each state since the schedule was created.

    They only grow: a run that a backfill repeats counts again.
    """

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    skipped: int = 0
    missed: int = 0


class RecentRun(BaseModel):
    id: str
    scheduled_for: int
    state: RunState


class InboxObject(BaseModel):
    on_empty: OnEmpty
    pending: int = Field(description="Requests that wait for the next run.")


# Fields of a definition that the API shows unchanged.
COPIED = (
    "cron",
    "timezone",
    "jitter",
    "input_file_id",
    "template_file_id",
    "source",
    "endpoint",
    "completion_window",
    "output_expires_after",
    "execution_window",
    "on_invalid",
    "overlap",
    "misfire",
    "misfire_limit",
    "catch_up_window",
    "pause_on_failure",
)


class ScheduleObject(Identified, Scoped):
    """A schedule: its definition in force, its state, and its latest runs."""

    always = frozenset({"id", "object", "status"})

    object: Literal["schedule"] = "schedule"
    name: str
    status: ScheduleStatus
    paused_at: int | None
    pause_note: str | None
    cron: str = Field(examples=["30 2 * * *"])
    description: str = Field(
        description="The cron expression in words.", examples=["At 02:30 every day"]
    )
    timezone: str = Field(examples=["Europe/Berlin"])
    starts_at: int | None
    ends_at: int | None
    jitter: int
    next_fire_at: int | None = Field(
        description="With its jitter. Unix seconds; null when it does not fire."
    )
    next_fire_local: str | None = Field(
        description="The same on its clock, ISO 8601.", examples=["2026-11-25T02:30:00+01:00"]
    )
    input_file_id: str | None
    template_file_id: str | None
    source: Source | None
    source_location: str | None = Field(
        description=(
            "Where to put a source's objects: a path on the server, or one below its storage"
            " folder."
        ),
        examples=["drop/0192…/live/exports"],
    )
    inbox: InboxObject | None
    endpoint: str
    completion_window: str
    metadata: dict[str, str]
    output_expires_after: ExpiresAfter | None
    execution_window: ExecutionWindow | None
    on_invalid: str
    overlap: str
    misfire: str
    misfire_limit: int
    catch_up_window: str
    pause_on_failure: int | None
    failures: int = Field(
        description="Failed runs since the last that succeeded, or since it was resumed."
    )
    run_counts: RunCounts
    recent_runs: list[RecentRun] = Field(description="Its latest instants, the oldest first.")
    last_run: RunObject | None
    created_at: int
    updated_at: int

    @classmethod
    def of(
        cls, schedule: Schedule, *, pending: int, recent: list[ScheduleRun], last: Outcome | None
    ) -> Self:
        """`last`: the outcome of the newest of the recent runs, None if there are no runs."""
        definition = Definition.model_validate(schedule.definition)
        starts_at, ends_at = (
            time and _unix(definition.instant(time))
            for time in (definition.starts_at, definition.ends_at)
        )
        copied: dict[str, Any] = {name: getattr(definition, name) for name in COPIED}
        return cls(
            **copied,
            id=ids.render("sched", schedule.id),
            name=schedule.name,
            status=ScheduleStatus(schedule.status),
            paused_at=schedule.paused_at and _unix(schedule.paused_at),
            pause_note=schedule.pause_note,
            description=definition.words,
            starts_at=starts_at,
            ends_at=ends_at,
            next_fire_at=schedule.next_fire_at and _unix(schedule.next_fire_at),
            next_fire_local=schedule.next_fire_at
            and _local(schedule.next_fire_at, definition.timezone),
            source_location=definition.source
            and sources.location(Owner(schedule.account_id, schedule.livemode), definition.source),
            inbox=definition.inbox
            and InboxObject(on_empty=definition.inbox.on_empty, pending=pending),
            metadata=definition.metadata or {},
            failures=schedule.failures,
            run_counts=RunCounts(**schedule.run_counts),
            recent_runs=[
                RecentRun(
                    id=ids.render("run", run.id),
                    scheduled_for=_unix(run.scheduled_for),
                    state=RunState(run.state),
                )
                for run in recent
            ],
            last_run=last and RunObject.of(recent[-1], last),
            created_at=_unix(schedule.created_at),
            updated_at=_unix(schedule.updated_at),
        )


class DeletedSchedule(BaseModel):
    id: str
    object: Literal["schedule"] = "schedule"
    deleted: Literal[True] = True
    discarded_requests: int


class Changes(RootModel[dict[str, Any]]):
    """Fields of a schedule to replace; null resets an optional field to its default."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        whole = handler.resolve_ref_schema(handler(Definition.__pydantic_core_schema__))
        return {**whole, "title": "Changes", "description": cls.__doc__, "required": []}


class PauseRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    note: Text | None = Field(
        None,
        description="The reason, shown with the paused schedule.",
        examples=["The warehouse is being moved."],
    )


class RunRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    as_of: Time | None = Field(
        None,
        description=(
            "The moment that placeholders stand for, such as a night whose run failed. Without an"
            " offset it is on the schedule's clock."
        ),
    )


class BackfillRequest(BaseModel):
    """Times are ISO 8601 or Unix seconds; one without an offset is on the schedule's clock."""

    model_config = ConfigDict(extra="forbid")

    start_at: Time = Field(
        alias="from", description="The first instant may be at this time.", examples=["2026-11-01"]
    )
    end_at: Time = Field(
        alias="to", description="The last instant is before this time.", examples=["2026-11-08"]
    )


class PreviewRequest(BaseModel):
    """The fields of a schedule that decide when it fires."""

    model_config = ConfigDict(extra="forbid")

    cron: Text = Field(
        description="Five fields, or `@daily` and the like.", examples=["30 2 * * *"]
    )
    timezone: Text = Field(
        "UTC", description="IANA name of the zone whose clock counts.", examples=["Europe/Berlin"]
    )
    starts_at: Time | None = None
    ends_at: Time | None = None
    jitter: int = Field(0, ge=0, le=900)


class Fire(BaseModel):
    """An instant at which a schedule fires."""

    scheduled_for: int
    local: str = Field(examples=["2026-11-25T02:30:00+01:00"])
    utc: str = Field(examples=["2026-11-25T01:30:00Z"])
    utc_offset: str = Field(examples=["+01:00"])


class PreviewObject(BaseModel):
    object: Literal["schedule.preview"] = "schedule.preview"
    cron: str
    description: str = Field(description="The cron expression in words.")
    timezone: str
    jitter_delay: int | None = Field(
        description="Seconds by which it fires after these instants; null before it is saved."
    )
    fires: list[Fire]

    @classmethod
    def of(
        cls, definition: Definition, instants: Iterable[datetime], jitter_delay: int | None
    ) -> Self:
        return cls(
            cron=definition.cron,
            description=definition.clock.describe(),
            timezone=definition.timezone,
            jitter_delay=jitter_delay,
            fires=[_fire(instant, definition.timezone) for instant in instants],
        )


class RequestsObject(Scoped):
    """The result of sending requests to an inbox."""

    always = frozenset({"object", "schedule_id", "accepted", "known"})

    object: Literal["schedule.requests"] = "schedule.requests"
    schedule_id: str
    accepted: int = Field(description="Number of new requests.")
    known: int = Field(description="Number of requests that waited already with the same content.")
    pending: int = Field(description="Number of requests that wait for the next run.")
    next_fire_at: int | None

    @classmethod
    def of(cls, schedule: Schedule, added: Added) -> Self:
        return cls(
            schedule_id=ids.render("sched", schedule.id),
            accepted=added.accepted,
            known=added.known,
            pending=added.pending,
            next_fire_at=schedule.next_fire_at and _unix(schedule.next_fire_at),
        )


def _fire(instant: datetime, timezone: str) -> Fire:
    local = _local(instant, timezone)
    utc = instant.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds")
    return Fire(
        scheduled_for=_unix(instant), local=local, utc=f"{utc}Z", utc_offset=local[len(utc) :]
    )


def _local(instant: datetime, timezone: str) -> str:
    return instant.astimezone(zone(timezone)).isoformat(timespec="seconds")


def _unix(time: datetime) -> int:
    return int(time.timestamp())
