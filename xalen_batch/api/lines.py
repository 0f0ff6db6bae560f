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
from xalen_batch.results import explain
from xalen_batch.results.explain import Explained
from xalen_batch.states import BatchStatus

router = APIRouter(prefix=PATH, tags=["extensions"])
# The attempts that a line without an answer had are in its message (`record._exhausted`).
ATTEMPTS = (
    "How the attempts at it ended: of a line that failed at its backend, their number and the last"
    " failure. Null for a line that was answered: failed attempts before an answer are not kept."
)


class LineUsage(BaseModel):
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    source: Literal["reported", "counted"] = Field(
        description="`counted`: here, since the backend reported no usable usage."
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
    attempts: str | None = Field(description=ATTEMPTS)
    usage: LineUsage | None
    charge: LineCharge | None

    @classmethod
    def of(cls, found: Explained, custom_id: str) -> Self:
        batch, ended, request = found.batch, found.ended, explain.parsed(found.request)
        result = explain.parsed(found.result)
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
            result=result,
            attempts=_attempts(found, result),
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


def _attempts(found: Explained, result: dict[str, Any] | None) -> str | None:
    """The message of a line that failed, which names its attempts and the last failure."""
    if found.ended is None or found.ended.amount is not None or result is None:
        return None
    body = (result.get("response") or {}).get("body")
    error = result.get("error") or (body.get("error") if isinstance(body, dict) else None)
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else None


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
