"""Schemas of the API's objects.

Every key is always present, null without a value: strict clients fail on absent keys.
"""

from datetime import datetime
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from xalen_batch import catalog, files, ids
from xalen_batch.api.http.raw_fields import RawJson
from xalen_batch.api.outlook_schemas import OutlookObject
from xalen_batch.api.scopes import Scoped
from xalen_batch.batches import batches
from xalen_batch.batches.batches import Progress
from xalen_batch.batches.outlook import Outlook
from xalen_batch.batches.waits import Reason, Wait
from xalen_batch.endpoints.names import NamedEndpoint
from xalen_batch.errors import InvalidRequest
from xalen_batch.fields import ExpiresAfter, Lenient, Metadata, Text
from xalen_batch.models import Batch, File
from xalen_batch.states import OnInvalid
from xalen_batch.windows import ExecutionWindow


class Identified(BaseModel):
    """An object with an id, which a list can hold."""

    id: str


T = TypeVar("T", bound=Identified)


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorObject(BaseModel):
    error: ErrorBody


class ListObject(BaseModel, Generic[T]):
    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, data: list[T], has_more: bool) -> Self:
        return cls(
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=has_more,
        )


class FileObject(Identified, Scoped):
    # Within the answer to a completed upload. All but its name, which that request does not have.
    always = frozenset(
        {
            "id",
            "object",
            "bytes",
            "created_at",
            "expires_at",
            "purpose",
            "status",
            "status_details",
        }
    )

    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    # `uploaded` is the input of a schedule's run that is not assembled yet.
    status: Literal["uploaded", "processed"]
    status_details: str | None = None

    @classmethod
    def of(cls, file: File) -> Self:
        return cls(
            id=ids.render("file", file.id),
            bytes=file.size,
            created_at=int(file.created_at.timestamp()),
            expires_at=_seconds(file.expires_at),
            filename=file.filename,
            purpose=file.purpose,
            status="processed" if files.is_ready(file) else "uploaded",
        )


class DeletedFile(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int
    cancelled: int = Field(
        description="Extension: lines that were not run before the batch was cancelled."
    )
    expired: int = Field(
        description="Extension: lines that were not run before the completion window passed."
    )


COUNTED = (
    "Extension: billed tokens that were counted here, since the backend reported no usable usage;"
    " null until the batch has ended."
)


class InputTokensDetails(BaseModel):
    cached_tokens: int
    counted_tokens: int | None = Field(description=COUNTED)


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int
    counted_tokens: int | None = Field(description=COUNTED)


class BatchUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class BatchError(BaseModel):
    code: str | None
    line: int | None
    message: str | None
    param: str | None


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchError]


class ExecutionWindowObject(BaseModel):
    """A batch's execution window as it was sent, and its interval that is open or opens next."""

    start: str
    end: str
    days: list[str]
    timezone: str
    state: Literal["open", "closed"]
    opens_at: int | None
    closes_at: int | None

    @classmethod
    def of(cls, batch: Batch, now: datetime | None) -> Self | None:
        if batch.execution_window is None or now is None:
            return None
        opens_at, closes_at = batches.interval(batch, now) or (None, None)
        return cls(
            **batch.execution_window,
            state="open" if opens_at is not None and opens_at <= now else "closed",
            opens_at=_seconds(opens_at),
            closes_at=_seconds(closes_at),
        )


class WaitingObject(BaseModel):
    """What a batch waits for, in a sentence. Other reasons may be added."""

    reason: Reason
    model: str | None = Field(description="The model whose lines wait; null: all lines do.")
    since: int | None = Field(description="Unix seconds; null where that is not known.")
    message: str

    @classmethod
    def of(cls, wait: Wait | None) -> Self | None:
        if wait is None:
            return None
        return cls(
            reason=wait.reason,
            model=wait.model,
            since=_seconds(wait.since),
            message=wait.message,
        )


class BatchObject(Identified, Scoped):
    # The fields that OpenAI's own type requires: its clients must be able to parse the answer to a
    # cancel, whatever the scopes of the key.
    always = frozenset(
        {"id", "object", "endpoint", "input_file_id", "completion_window", "status", "created_at"}
    )

    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str]
    schedule_id: str | None
    run_id: str | None
    execution_window: ExecutionWindowObject | None
    on_invalid: str
    retry_of: str | None = Field(
        description="Extension: the batch whose failed lines this one runs again."
    )
    retry_codes: list[str] | None = Field(
        description="Extension: of a retry, the codes with which its lines had failed."
    )
    waiting: WaitingObject | None = Field(
        description=(
            "Extension: what keeps its lines from running at this moment; null: nothing does. Only"
            " a batch that is read by its id names what passes by itself: `validation`,"
            " `rate_limit` and `turn`."
        )
    )

    outlook: OutlookObject | None = Field(
        description=(
            "Extension: of a batch in progress that is read by its id, when it will probably end,"
            " and its errors so far; else null."
        )
    )

    @classmethod
    def of(
        cls,
        batch: Batch,
        progress: Progress,
        now: datetime | None,
        waiting: Wait | None = None,
        outlook: Outlook | None = None,
    ) -> Self:
        """`now`: the time by PostgreSQL's clock, which decides on execution windows; None if the
        batch has none.
        """
        errors = None
        if batch.errors is not None:
            errors = BatchErrors(data=[_error(error) for error in batch.errors])
        return cls(
            id=ids.render("batch", batch.id),
            endpoint=batch.endpoint,
            model=batch.model,
            errors=errors,
            input_file_id=ids.render("file", batch.input_file_id),
            completion_window=batch.completion_window,
            status=batch.status,
            output_file_id=batch.output_file_id and ids.render("file", batch.output_file_id),
            error_file_id=batch.error_file_id and ids.render("file", batch.error_file_id),
            created_at=int(batch.created_at.timestamp()),
            in_progress_at=_seconds(batch.in_progress_at),
            expires_at=int(batch.expires_at.timestamp()),
            finalizing_at=_seconds(batch.finalizing_at),
            completed_at=_seconds(batch.completed_at),
            failed_at=_seconds(batch.failed_at),
            expired_at=_seconds(batch.expired_at),
            cancelling_at=_seconds(batch.cancelling_at),
            cancelled_at=_seconds(batch.cancelled_at),
            request_counts=RequestCounts(
                **{name: getattr(progress, name) for name in RequestCounts.model_fields}
            ),
            usage=_usage(progress),
            metadata=batch.meta,
            schedule_id=batch.schedule_id and ids.render("sched", batch.schedule_id),
            run_id=batch.run_id and ids.render("run", batch.run_id),
            execution_window=ExecutionWindowObject.of(batch, now),
            on_invalid=batch.on_invalid,
            retry_of=batch.retry_of and ids.render("batch", batch.retry_of),
            retry_codes=batch.retry_codes,
            waiting=WaitingObject.of(waiting),
            outlook=OutlookObject.of(outlook),
        )


class ModelObject(Identified):
    object: Literal["model"] = "model"
    # The catalog has no creation time.
    created: int = 0
    owned_by: str

    @classmethod
    def of(cls, model: catalog.Model) -> Self:
        return cls(id=model.id, owned_by=model.owned_by)


ON_INVALID = (
    "Extension: what invalid lines do. `fail`, the default: the batch fails and nothing runs."
    " `skip`: they end in the error file, not billed, and the other lines run."
)


class BatchWebhook(BaseModel):
    """Extension: a webhook that gets the events of one batch."""

    model_config = ConfigDict(extra="forbid")

    url: Text = Field(description="Where the batch's events are posted.")
    secret: Text | None = Field(
        None, description="`whsec_…`, which signs them. Unset: they are not signed."
    )


class BatchRequest(Lenient):
    """Null stands for anything optional; fields that other gateways add are ignored, other
    spellings of these are refused.
    """

    input_file_id: Text | None = Field(
        None, description="A file uploaded with the purpose `batch`. Required without `requests`."
    )
    requests: RawJson | None = Field(
        None,
        description=(
            "Extension: the requests themselves, in place of a file; each is what a line of a file"
            " is. The server makes the input file of them."
        ),
    )
    endpoint: NamedEndpoint = Field(
        description=(
            "The endpoint of every line. Other spellings, such as `/chat/completions`, mean the"
            " same."
        )
    )
    completion_window: Text = Field(
        description="`24h`. Extension: whole hours or days, `1h` to `7d`.", examples=["24h"]
    )
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None
    execution_window: ExecutionWindow | None = Field(
        None, description="Extension: hours in which its lines may be started."
    )
    on_invalid: OnInvalid | None = Field(None, description=ON_INVALID)
    webhook: BatchWebhook | None = None

    @model_validator(mode="after")
    def _has_one_input(self) -> Self:
        if self.input_file_id is None and self.requests is None:
            raise InvalidRequest(
                "Missing required parameter: `input_file_id`. Send the id of an uploaded file, or"
                " the requests themselves as `requests`.",
                param="input_file_id",
                code="missing_required_parameter",
            )
        if self.input_file_id is not None and self.requests is not None:
            raise InvalidRequest(
                "requests: `input_file_id` is sent, too. Send one of them.", param="requests"
            )
        return self


class EstimateRequest(Lenient):
    input_file_id: Text = Field(description="A file uploaded with the purpose `batch`.")
    endpoint: NamedEndpoint | None = Field(
        None, description="The endpoint a batch would name. Unset: that of the file's first line."
    )


def _seconds(time: datetime | None) -> int | None:
    return None if time is None else int(time.timestamp())


def _error(error: dict[str, Any]) -> BatchError:
    return BatchError(**{name: error.get(name) for name in BatchError.model_fields})


def _usage(progress: Progress) -> BatchUsage:
    return BatchUsage(
        input_tokens=progress.input_tokens,
        input_tokens_details=InputTokensDetails(
            cached_tokens=progress.cached_tokens, counted_tokens=progress.counted_input_tokens
        ),
        output_tokens=progress.output_tokens,
        output_tokens_details=OutputTokensDetails(
            reasoning_tokens=progress.reasoning_tokens,
            counted_tokens=progress.counted_output_tokens,
        ),
        total_tokens=progress.input_tokens + progress.output_tokens,
    )
