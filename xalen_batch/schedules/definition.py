"""The definition of a schedule: when it fires, what a run reads, and how the batch runs.

One model for the API's body, the row of the schedule, and the copy that each run keeps.
"""

import hashlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from xalen_batch import windows
from xalen_batch.config import settings
from xalen_batch.endpoints.names import NamedEndpoint
from xalen_batch.errors import InvalidRequest
from xalen_batch.fields import STORABLE, ExpiresAfter, Metadata, Text, Time
from xalen_batch.schedules.cron import Cron
from xalen_batch.states import OnInvalid
from xalen_batch.timezones import zone
from xalen_batch.windows import ExecutionWindow

WHAT = ("input_file_id", "template_file_id", "source", "inbox")
# Fires that are checked against the execution window: a year of nights has both clock changes.
CHECKED_FIRES = 400

ObjectPath = Annotated[str, StringConstraints(min_length=1, max_length=1024), STORABLE]
OnEmpty = Literal["skip", "fail"]
Overlap = Literal["skip", "buffer_one", "allow", "cancel_previous"]
Misfire = Literal["latest", "all", "none"]


class Source(BaseModel):
    """Objects in a folder when the schedule fires, joined by name into one input file.

    Each object is taken once.
    """

    model_config = ConfigDict(extra="forbid")

    prefix: ObjectPath | None = Field(
        None,
        description=(
            "Where in the server's storage, below the account's own `drop/<its id without"
            " acct_>/<test or live>/`; may hold placeholders."
        ),
    )
    folder: ObjectPath | None = Field(
        None,
        description="A folder on the server, below one of its drop roots; may hold placeholders.",
    )
    pattern: ObjectPath = Field(
        "*.jsonl",
        description=(
            "Which objects are taken, by their path below it: `*` stands for any characters, also"
            " `/`, so it matches in subfolders. May hold placeholders."
        ),
    )
    on_empty: OnEmpty = Field(
        "skip", description="Whether a run that finds nothing new is skipped or fails."
    )
    ready_marker: ObjectPath | None = Field(
        None,
        description=(
            "Path below it of an object that marks the others as complete. A run waits for it,"
            " within the catch-up window, and does not take it. May hold placeholders."
        ),
    )
    repeat: bool = Field(False, description="Take objects again that an earlier run has taken.")


class Inbox(BaseModel):
    """Requests that are POSTed one by one, and run together when the schedule fires."""

    model_config = ConfigDict(extra="forbid")

    on_empty: OnEmpty = Field(
        "skip", description="Whether a run without requests is skipped or fails."
    )


class Definition(BaseModel):
    """Times are ISO 8601 or Unix seconds; one without an offset is on the schedule's own clock."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), STORABLE
    ]

    cron: Text = Field(
        description="Five fields, or `@daily` and the like.", examples=["30 2 * * *"]
    )
    timezone: Text = Field(
        "UTC", description="IANA name of the zone whose clock counts.", examples=["Europe/Berlin"]
    )
    starts_at: Time | None = Field(None, description="No fire before this time.")
    ends_at: Time | None = Field(None, description="No fire from this time on.")
    jitter: int = Field(
        0,
        ge=0,
        le=900,
        description=(
            "Most seconds between an instant and its fire. Each schedule has a delay of its own,"
            " which never changes."
        ),
    )

    input_file_id: Text | None = Field(None, description="A file that each run reads unchanged.")
    template_file_id: Text | None = Field(
        None, description="A file whose strings hold placeholders, such as `{{scheduled_date-1d}}`."
    )
    source: Source | None = None
    inbox: Inbox | None = None

    endpoint: NamedEndpoint = Field(
        description=(
            "The endpoint of every line. Other spellings, such as `/chat/completions`, mean the"
            " same."
        )
    )
    completion_window: Text = Field(
        "24h", description="Of each batch: whole hours or days, `1h` to `7d`."
    )
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None
    execution_window: ExecutionWindow | None = None
    on_invalid: OnInvalid = Field(
        OnInvalid.FAIL,
        description="What invalid lines do to their batch: it fails, or they are skipped.",
    )

    overlap: Overlap = Field(
        "skip", description="What a run does while the run before it has not ended."
    )
    misfire: Misfire = Field(
        "latest",
        description="Which late instants still run, if nothing was there to fire them on time.",
    )
    misfire_limit: int = Field(
        10, ge=1, le=100, description="With `misfire: all`, the most late instants that run."
    )
    catch_up_window: Text = Field(
        "12h",
        description=(
            "The greatest age of a late instant that still runs: minutes, hours or days, up to"
            " `30d`."
        ),
    )
    pause_on_failure: int | None = Field(
        None, ge=1, le=1000, description="Pause after this many failed runs in a row."
    )

    @model_validator(mode="before")
    @classmethod
    def _shared_zone(cls, value: Any) -> Any:
        """Give an execution window without a zone the schedule's zone."""
        window = value.get("execution_window") if isinstance(value, dict) else None
        if not isinstance(window, dict) or window.get("timezone") is not None:
            return value
        name = value.get("timezone") or "UTC"
        if isinstance(name, str):
            # Check it here, so that an error names the schedule's field and not the window's.
            zone(name)
        return {**value, "execution_window": {**window, "timezone": name}}

    @property
    def clock(self) -> Cron:
        """InvalidRequest for an invalid expression or zone."""
        return Cron.parse(self.cron, self.timezone)

    @property
    def words(self) -> str:
        """The expression in words, or unchanged if its zone was removed from the database."""
        try:
            return self.clock.describe()
        except InvalidRequest:
            return self.cron

    @property
    def when(self) -> dict[str, Any]:
        """The fields that decide when it fires."""
        return self.model_dump(include={"cron", "timezone", "starts_at", "ends_at", "jitter"})

    @property
    def file_id(self) -> str | None:
        """The id of the file that runs read, if any."""
        return self.input_file_id or self.template_file_id

    @property
    def file_param(self) -> str:
        """The field that names this file."""
        return "input_file_id" if self.input_file_id else "template_file_id"

    @property
    def catch_up(self) -> timedelta:
        return windows.catch_up(self.catch_up_window)

    def instant(self, time: datetime) -> datetime:
        """A time that a user wrote: without an offset it is on the schedule's clock."""
        return time if time.tzinfo else time.replace(tzinfo=self.clock.zone)

    def fires(self, after: datetime) -> Iterator[datetime]:
        """The instants later than `after`, in [starts_at, ends_at), in UTC and without jitter."""
        if self.starts_at is not None:
            after = max(after, self.instant(self.starts_at) - timedelta(microseconds=1))
        end = None if self.ends_at is None else self.instant(self.ends_at)
        for instant in self.clock.after(after):
            if end is not None and instant >= end:
                return
            yield instant

    def delay(self, schedule_id: UUID) -> timedelta:
        """The jitter of a schedule: it fires this much after each instant. It never changes."""
        digest = hashlib.sha256(schedule_id.bytes).digest()
        return timedelta(seconds=int.from_bytes(digest[:4], "big") % (self.jitter + 1))

    def next_fire(self, schedule_id: UUID, after: datetime) -> datetime | None:
        """The first fire for an instant later than `after`, with jitter. None if there is none."""
        instant = next(self.fires(after), None)
        return None if instant is None else instant + self.delay(schedule_id)

    def check(self, now: datetime) -> None:
        """InvalidRequest, with the reason, for a schedule that could never work. Reads no file."""
        given = [name for name in WHAT if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"{' and '.join(given)} are given" if given else "none is given"
            raise InvalidRequest(
                f"A schedule runs exactly one of {', '.join(WHAT)}; {found}.",
                param=given[0] if given else WHAT[0],
            )
        if self.source is not None and (self.source.prefix is None) == (self.source.folder is None):
            raise InvalidRequest("source: give either `prefix` or `folder`.", param="source")
        self._check_when(now)
        self._check_how(now)

    def check_to_come(self, now: datetime) -> None:
        """InvalidRequest if it never fires after `now`."""
        if next(self.fires(now), None) is None:
            raise InvalidRequest(
                f"cron: {self.cron!r} has no fire left before ends_at. Send a later ends_at, or"
                " none.",
                param="ends_at",
            )

    def _check_when(self, now: datetime) -> None:
        gap = self.clock.shortest_gap
        least = timedelta(seconds=settings().schedule_min_interval)
        if gap < least:
            raise InvalidRequest(
                f"cron: {self.cron!r} fires {_minutes(gap)} apart; the least is {_minutes(least)}."
                " Let it fire less often.",
                param="cron",
            )
        if timedelta(seconds=self.jitter) >= gap:
            raise InvalidRequest(
                f"jitter: {self.jitter} s is not less than the {_minutes(gap)} between two fires.",
                param="jitter",
            )

    def _check_how(self, now: datetime) -> None:
        completion = windows.completion(self.completion_window)
        if self.catch_up and self.misfire == "all" and self.overlap == "cancel_previous":
            raise InvalidRequest(
                "overlap: with `misfire: all`, `cancel_previous` would let each run that is made up"
                " for cancel the one before. Send `allow` or `buffer_one`.",
                param="overlap",
            )
        if self.execution_window is not None:
            for instant in islice(self.fires(now), CHECKED_FIRES):
                for delay in {0, self.jitter}:
                    windows.refuse_if_never_open(
                        self.execution_window, instant + timedelta(seconds=delay), completion
                    )


def _minutes(length: timedelta) -> str:
    minutes = int(length.total_seconds() // 60)
    return f"{minutes} minute{'' if minutes == 1 else 's'}"
