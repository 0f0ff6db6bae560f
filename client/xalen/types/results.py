"""The result of one line of a batch, and the type of its answer."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from openai import BaseModel
from openai.types import Completion, CreateEmbeddingResponse, ModerationCreateResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from xalen.types.rerank import RerankResponse

T = TypeVar("T")

# The type of the answers, by the batch's endpoint.
ANSWERS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatCompletion,
    "/v1/completions": Completion,
    "/v1/embeddings": CreateEmbeddingResponse,
    "/v1/moderations": ModerationCreateResponse,
    "/v1/rerank": RerankResponse,
    "/v1/responses": Response,
}


@dataclass(frozen=True, slots=True)
class LineError:
    """Why a line has no answer."""

    code: str | None
    message: str
    status_code: int | None
    """The status of the model server's answer; None if there was none."""


@dataclass(frozen=True, slots=True)
class LineResult(Generic[T]):
    """The result of one line: either `response` or `error`."""

    custom_id: str
    response: T | None
    """None if the line failed, or was not run."""
    error: LineError | None
    request: dict[str, Any] | None
    """The line as it was sent: `custom_id`, `method`, `url`, `body`. None if the input file was
    deleted, or the line is no JSON object."""


def parse(result: dict[str, Any], answer: type[BaseModel], request: Any) -> LineResult[Any]:
    """A line of an output or error file, with the line of the input file."""
    response = result.get("response") or {}
    status, body = response.get("status_code"), response.get("body")
    sent = request if isinstance(request, dict) else None
    if isinstance(status, int) and 200 <= status < 300 and isinstance(body, dict):
        # Not validated, as `openai` does not validate answers: a server may add fields.
        return LineResult(result["custom_id"], answer.construct(**body), None, sent)
    told = result.get("error")
    if not isinstance(told, dict) and isinstance(body, dict):
        told = body.get("error")
    told = told if isinstance(told, dict) else {"message": str(told or body)}
    code, message = told.get("code"), str(told.get("message"))
    error = LineError(None if code is None else str(code), message, status)
    return LineResult(result["custom_id"], None, error, sent)
