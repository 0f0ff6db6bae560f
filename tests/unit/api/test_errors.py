"""An error message names the field, its value and the expected form."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.exc import OperationalError

from xalen_batch.api import errors
from xalen_batch.api.schemas import BatchRequest
from xalen_batch.errors import Unavailable

REQUEST = Request(
    {
        "type": "http",
        "method": "POST",
        "path": "/v1/batches",
        "headers": [],
        "query_string": b"",
        "server": ("x", 80),
    }
)
VALID = {"input_file_id": "file-1", "endpoint": "/v1/rerank", "completion_window": "24h"}


def message(body: object) -> str:
    try:
        TypeAdapter(BatchRequest).validate_python(body)
    except ValidationError as error:
        found = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
        return errors.translate(REQUEST, RequestValidationError(found)).message
    raise AssertionError("the body is valid")


def test_messages_name_field_value_and_remedy() -> None:
    assert (
        message({**VALID, "endpoint": "/v1/moderations"})
        == "Invalid `endpoint`: should be '/v1/chat/completions', '/v1/responses',"
        " '/v1/completions', '/v1/embeddings' or '/v1/rerank'; got '/v1/moderations'."
    )
    assert (
        message({**VALID, "metadata": {"a": 1}})
        == "Invalid `metadata.a`: should be a valid string; got 1."
    )
    assert (
        message({**VALID, "metadata": {"a": "\0"}})
        == "Invalid `metadata.a`: should contain neither NUL nor lone surrogates; got '\\x00'."
    )
    assert message({**VALID, "webhook": "x"}) == "Invalid `webhook`: should be an object; got 'x'."
    assert (
        message({**VALID, "endpoint": None, "metadata": {"a": None}}).rpartition("; ")[2]
        == "got null."
    )
    assert message({}) == "Missing required parameter: `endpoint`. Add it to the request."
    assert (
        message([])
        == "The body must be one JSON object, sent with `content-type: application/json`."
    )


def test_a_long_value_is_cut() -> None:
    assert len(message({**VALID, "endpoint": "x" * 10_000})) < 250


def test_what_a_store_says_stays_in_the_log() -> None:
    error = OperationalError("SELECT secret", {}, Exception("password"))
    answer = errors.answer(REQUEST, error)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert isinstance(errors.translate(REQUEST, error), Unavailable)
    assert b"secret" not in bytes(answer.body)
    assert b"password" not in bytes(answer.body)


def test_every_expected_error_has_the_one_handler() -> None:
    app = FastAPI()
    errors.install(app)
    assert {app.exception_handlers[kind] for kind in errors.EXPECTED} == {errors.answer}
