"""The outcome of a line for each reply of a backend."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xalen_batch.backends.clients.contract import Reply
from xalen_batch.backends.contract import Answered, Outcome, Refused, Request, Retryable
from xalen_batch.backends.outcomes import outcome_of, retry_after
from xalen_batch.endpoints.names import CHAT, RERANK
from xalen_batch.endpoints.usage import Usage

ASKED = Request(CHAT, b'{"model":"m","messages":[{"role":"user","content":"Hello"}]}', "r")
GOOD = (
    b'{"choices":[{"message":{"content":"Hi"}}],"usage":{"prompt_tokens":3,"completion_tokens":1}}'
)


def judge(status: int, body: bytes = b"", request: Request = ASKED, **headers: str) -> Outcome:
    return outcome_of(
        Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()}.get),
        request,
    )


def refused(status: int, body: bytes) -> dict[str, object]:
    outcome = judge(status, body)
    assert isinstance(outcome, Refused)
    assert outcome.status == status
    assert b"\n" not in outcome.body
    error = orjson.loads(outcome.body)["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    return error


def test_a_completion_is_answered_as_it_came() -> None:
    assert judge(200, GOOD) == Answered(200, GOOD, Usage(3, 1))


def test_an_answer_over_several_lines_becomes_one() -> None:
    body = orjson.dumps(orjson.loads(GOOD), option=orjson.OPT_INDENT_2).replace(b"\n", b"\r\n")
    outcome = judge(201, body)
    assert isinstance(outcome, Answered)
    assert b"\n" not in outcome.body
    assert b"\r" not in outcome.body
    assert orjson.loads(outcome.body) == orjson.loads(GOOD)


def test_escapes_in_an_answer_survive() -> None:
    body = b'{"choices":[{"message":{"content":"a\\nb\\u0000\\u00e9"}}],\n"usage":{"prompt_tokens":3,"completion_tokens":1}}'
    outcome = judge(200, body)
    assert isinstance(outcome, Answered)
    assert orjson.loads(outcome.body) == orjson.loads(body)


@pytest.mark.parametrize(
    "status", [408, 409, 423, 424, 425, 429, 499, 500, 502, 503, 504, 524, 529, 599, 600, 999, 100]
)
def test_trouble_is_retried(status: int) -> None:
    outcome = judge(status, b"whatever")
    assert isinstance(outcome, Retryable)
    assert outcome.status == status
    assert outcome.is_overload == (status in (429, 503, 529))
    assert outcome.is_timeout == (status in (408, 504, 524))
    assert outcome.is_failed_attempt != outcome.is_overload


@pytest.mark.parametrize("status", [400, 413, 414, 416, 422, 431, 451])
def test_what_is_the_lines_own_fault_is_refused_in_the_backends_words(status: int) -> None:
    assert refused(status, b'{"error":{"message":"no","code":7}}')["message"] == "no"
    assert refused(status, b'{"error":{"message":"no","code":7}}')["code"] == 7


@pytest.mark.parametrize("status", [403, 404, 405, 406, 410, 415, 418, 426, 501, 505])
def test_what_may_be_the_setups_fault_keeps_the_backends_words_until_others_are_answered(
    status: int,
) -> None:
    outcome = judge(status, b'{"error":{"message":"no"}}')
    assert isinstance(outcome, Retryable)
    assert outcome.refusal is not None
    assert outcome.refusal.status == status
    assert orjson.loads(outcome.refusal.body)["error"]["message"] == "no"
    assert (outcome.is_failed_attempt, outcome.is_unreachable, outcome.is_overload) == (
        False,
        False,
        False,
    )


@pytest.mark.parametrize("status", [301, 302, 307, 308, 401, 402, 407])
def test_what_only_the_operator_can_mend_costs_a_line_nothing(status: int) -> None:
    outcome = judge(status, b'{"error":{"message":"no"}}')
    assert isinstance(outcome, Retryable)
    assert outcome.is_unreachable
    assert outcome.refusal is None


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (
            404,
            b'{"error":{"message":"The model `m` does not exist or you do not have access to it.","type":"invalid_request_error",'
            b'"param":null,"code":"model_not_found"}}',
        ),
        (
            403,
            b'{"error":{"message":"Project has no access.","type":"invalid_request_error","param":null,"code":"model_not_found"}}',
        ),
        (
            404,
            b'{"object":"error","message":"The model `m` does not exist.","type":"NotFoundError","param":null,"code":404}',
        ),
        (
            404,
            b'{"error":{"message":"The model `m` does not exist.","type":"NotFoundError","param":"model","code":404}}',
        ),
        (
            404,
            b'{"error":{"message":"model \\"m\\" not found, try pulling it first","type":"api_error","param":null,"code":null}}',
        ),
        (404, b'{"error":"model \'m:1b\' not found, try pulling it first"}'),
        (
            400,
            b'{"error":{"message":"{\'error\': \'/chat/completions: Invalid model name passed in model=m. Call `/v1/models` to view'
            b' available models for your key.\'}","type":"None","param":"None","code":"400"}}',
        ),
        (400, b'{"detail":{"error":"chat_completion: Invalid model name passed in model=m"}}'),
        (
            400,
            b'{"object":"error","message":"Invalid model: m","type":"invalid_model","param":null,"code":"1500"}',
        ),
        (
            400,
            b'{"error":{"message":"Model Not Exist","type":"invalid_request_error","param":null,"code":"invalid_request_error"}}',
        ),
        (422, b'{"error":{"message":"no","type":"x","param":"model","code":null}}'),
    ],
    ids=[
        "openai",
        "openai 403",
        "vllm before",
        "vllm",
        "ollama",
        "ollama's own",
        "litellm",
        "litellm before",
        "mistral",
        "deepseek",
        "param",
    ],
)
def test_an_unknown_model_is_the_setups_fault_whatever_the_status(status: int, body: bytes) -> None:
    outcome = judge(status, body)
    assert isinstance(outcome, Retryable)
    assert outcome.refusal is not None
    assert "does not know the model" in outcome.reason


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens.",
        "The model `m` does not support image input.",
        "tool_choice names a function that is not found in tools",
        "model output: function f not found",
        "Image https://example.com/a.png not found",
    ],
)
def test_a_400_about_something_else_is_the_lines_own(message: str) -> None:
    assert refused(400, orjson.dumps({"error": {"message": message}}))["message"] == message


@pytest.mark.parametrize(
    "code", ["insufficient_quota", "credit_balance_exhausted", "project_spend_limit_exceeded"]
)
@pytest.mark.parametrize("status", [403, 429])
def test_an_unpaid_bill_is_not_load(status: int, code: str) -> None:
    outcome = judge(
        status,
        orjson.dumps({"error": {"message": "no", "type": "insufficient_quota", "code": code}}),
    )
    assert isinstance(outcome, Retryable)
    assert (outcome.is_unreachable, outcome.is_overload) == (True, False)
    assert code in outcome.reason


def test_a_reason_quotes_nothing_that_the_backend_said_of_a_request() -> None:
    said = orjson.dumps(
        {"error": {"message": "no such thing: SECRET PROMPT", "code": "SECRET PROMPT"}}
    )
    for status in (307, 401, 403, 404, 409, 429, 500):
        outcome = judge(status, said)
        assert isinstance(outcome, Retryable)
        assert "SECRET" not in outcome.reason


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "with status 400."),
        (b"Input is too long", "400: Input is too long"),
        (b'{"error":"too long","error_type":"Validation"}', "400: too long"),
        (b'{"object":"error","message":"too long","code":400}', "400: too long"),
        (b'{"detail":[{"loc":["body"]}]}', '400: {"detail":[{"loc":["body"]}]}'),
        (b"<!doctype html><html><h1>Bad gateway</h1></html>", "a page of HTML."),
        (b"\xff\xfe", "400: "),
        (b"[" * 100_000, "400: ["),
    ],
)
def test_other_shapes_are_put_into_words(body: bytes, said: str) -> None:
    message = str(refused(400, body)["message"])
    assert said in message
    assert len(message) < 600


def test_a_long_refusal_is_cut() -> None:
    assert len(str(refused(400, b"x" * 100_000)["message"])) < 600


def test_types_follow_the_status() -> None:
    assert refused(400, b"")["type"] == "invalid_request_error"
    for status, expected in ((403, "permission_error"), (404, "not_found_error")):
        outcome = judge(status)
        assert isinstance(outcome, Retryable)
        assert outcome.refusal is not None
        assert orjson.loads(outcome.refusal.body)["error"]["type"] == expected


def test_a_rerank_needs_results() -> None:
    asked = Request(RERANK, b'{"query":"q","documents":["a"]}', "r")
    assert isinstance(judge(200, GOOD, asked), Retryable)
    assert isinstance(judge(200, b'{"results":[]}', asked), Answered)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "Thu, 01 Jan 99999 00:00:00 GMT"}, None),
        ({"retry-after": "9", "retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "9", "retry-after-ms": "x"}, 9.0),
    ],
)
def test_retry_after_is_seconds_milliseconds_or_a_date(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after(headers.get) == seconds


def test_retry_after_takes_a_date() -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert retry_after({"retry-after": when}.get) == pytest.approx(60, abs=2)


@given(st.integers(0, 999), st.binary(max_size=60), st.sampled_from([CHAT, RERANK]))
def test_no_reply_raises(status: int, body: bytes, endpoint: str) -> None:
    outcome = judge(status, body, Request(endpoint, ASKED.body, "r"))  # type: ignore[arg-type]
    if isinstance(outcome, Answered | Refused):
        assert b"\n" not in outcome.body
        assert isinstance(orjson.loads(outcome.body), dict)
