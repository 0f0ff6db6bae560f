"""One line of a batch: what was asked, what came of it, and how its amount was computed."""

from typing import Any, ClassVar, Literal, Self
from urllib.parse import unquote

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from xalen_batch import ids
from xalen_batch.api import long_work, scopes
from xalen_batch.api.batches import PATH
from xalen_batch.api.deps import BriefReader
from xalen_batch.api.http.responses import JSON
from xalen_batch.api.money_schemas import LineCharge
from xalen_batch.api.scopes import Scoped
from xalen_batch.models.line_attempts import Attempt
from xalen_batch.results import explain
from xalen_batch.results.explain import Explained
from xalen_batch.states import AttemptError, BatchStatus

router = APIRouter(prefix=PATH, tags=["extensions"])
REASON = (
    "Why a line without a result does not run: what its batch waits for, or why it ended. Null if"
    " the line has a result, or nothing stands in its way."
)
ATTEMPTS = (
    "The last failed attempts, at most ten, the oldest first. The attempt that brought the result"
    " is not among them. They are kept for 10,000 lines of a batch, until its output or error file"
    " is deleted or expires."
)


class LineUsage(BaseModel):
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    source: Literal["reported", "counted"] = Field(
        description="`counted`: here, since the backend reported no usable usage."
    )


class LineAttempt(BaseModel):
    at: int = Field(description="When the request was sent, or the worker was found lost.")
    seconds: float | None = Field(description="Until it failed; null if the worker was lost.")
    error: AttemptError = Field(
        description=(
            "`busy` (429, 503, 529), `timeout`, `unreachable` (no connection, or a refused key),"
            " `connection_broken`, `bad_answer` (no JSON, or not of the form), `refused` (a 4xx of"
            " the setup or the line), `server_error`; `worker_lost`: the worker with the line"
            " died, whether it had sent the line is not known."
        )
    )
    status_code: int | None = Field(description="The HTTP status, if the server answered.")
    server: int | None = Field(
        description="The number of the model's server, from 1, in the order of the catalog."
    )

    @classmethod
    def of(cls, attempt: Attempt) -> Self:
        return cls(
            at=int(attempt.at),
            seconds=None if attempt.seconds is None else round(attempt.seconds, 3),
            error=AttemptError(attempt.error),
            status_code=attempt.status,
            server=attempt.server,
        )


class LineObject(Scoped):
    always: ClassVar[frozenset[str]] = frozenset({"object", "batch_id"})
    priced: ClassVar[frozenset[str]] = frozenset({"charge"})

    object: Literal["batch.line"] = "batch.line"
    batch_id: str
    custom_id: str
    line: int = Field(description="Its number in the input file, from 1.")
    status: Literal["waiting", "succeeded", "failed", "invalid", "expired", "cancelled", "not_run"]
    model: str | None
    answered_by: str | None = Field(
        description="The kind of backend of its model: `openai` (a model server) or `simulated`."
    )
    request: dict[str, Any] | None = Field(
        description="The line of the input file; null if that is gone, or the line is no object."
    )
    result: dict[str, Any] | None = Field(
        description=(
            "The line of the output or error file; null while there is none, or it was deleted."
        )
    )
    reason: str | None = Field(description=REASON)
    failed_attempts: int = Field(description="All failed attempts, as far as they are known.")
    attempts: list[LineAttempt] = Field(description=ATTEMPTS)
    usage: LineUsage | None
    charge: LineCharge | None

    @classmethod
    def of(cls, found: Explained, custom_id: str) -> Self:
        batch, ended, request = found.batch, found.ended, explain.parsed(found.request)
        request = request if isinstance(request, dict) else None
        model = ended.model if ended is not None else _model(request)
        return cls(
            batch_id=ids.render("batch", batch.id),
            custom_id=custom_id,
            line=found.number,
            status=_status(found),
            model=model or None,
            answered_by=batch.backend_of(model) if model else None,
            request=request,
            result=explain.parsed(found.result),
            reason=found.reason,
            failed_attempts=found.failed,
            attempts=[LineAttempt.of(attempt) for attempt in found.attempts],
            usage=(
                None
                if ended is None or ended.amount is None
                else LineUsage(
                    input_tokens=ended.usage.input_tokens,
                    cached_tokens=ended.usage.cached_tokens,
                    output_tokens=ended.usage.output_tokens,
                    reasoning_tokens=ended.usage.reasoning_tokens,
                    source="counted" if ended.is_counted else "reported",
                )
            ),
            charge=LineCharge.of(found.charge),
        )


def _status(found: Explained) -> str:
    if found.ended is not None:
        return found.ended.state
    return "not_run" if BatchStatus(found.batch.status).is_terminal else "waiting"


def _model(request: Any) -> str | None:
    body = request.get("body") if isinstance(request, dict) else None
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) else None


@router.get("/{batch_id}/lines/{custom_id:path}", response_model=LineObject)
def explain_line(request: Request, caller: BriefReader, batch_id: str, custom_id: str) -> Response:
    """One line: its request, its result, its tokens, and how its amount was computed.

    Percent-encode the custom id, slashes too. The input file is searched for it, which takes about
    a second for each gigabyte; such requests count toward the limit of long requests.
    """
    name = _as_sent(request, custom_id)
    with long_work.admitted(caller):
        found = explain.of(caller, batch_id, name)
    return Response(scopes.render(LineObject.of(found, name), caller.scopes), media_type=JSON)


def _as_sent(request: Request, custom_id: str) -> str:
    """The custom id as it was sent: the decoded path lacks doubled and trailing slashes."""
    _, found, rest = request.scope.get("raw_path", b"").partition(b"/lines/")
    return unquote(rest) if found else custom_id
