"""The schemas of lines agree with validation and with what is rendered."""

import json
from typing import Any
from uuid import UUID

import jsonschema
import pytest
from starlette.testclient import TestClient

from tests import factories
from xalen_batch import catalog, jsonl
from xalen_batch.api import app, line_schemas
from xalen_batch.endpoints.names import ENDPOINTS, RESPONSES, spellings
from xalen_batch.validation.lines import GoodLine, scan

INPUT = jsonschema.Draft202012Validator(line_schemas.batch_line())
RESULT = jsonschema.Draft202012Validator(line_schemas.result_line())
CALLS = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


def is_good(line: dict[str, Any]) -> bool:
    """Whether validation takes a line."""
    content = json.dumps(line).encode()
    (found,) = scan([content], endpoint=None, models=catalog.models())
    return isinstance(found, GoodLine)


def responses(**body: Any) -> dict[str, Any]:
    line = factories.chat_line("a") | {"url": RESPONSES}
    return line | {"body": {"model": factories.CHAT_MODEL, "input": "Hello"} | body}


def completion(**body: Any) -> dict[str, Any]:
    line = factories.chat_line("a") | {"url": "/v1/completions"}
    return line | {"body": {"model": factories.CHAT_MODEL, "prompt": "Once"} | body}


def said(**message: Any) -> dict[str, Any]:
    return factories.chat_line("a") | {
        "body": {"model": factories.CHAT_MODEL, "messages": [message]}
    }


GOOD = [
    factories.chat_line("a"),
    factories.chat_line("a" * 512, temperature=0.5, max_tokens=256.0, seed=1, stop=["a"]),
    factories.chat_line("a", stream=False, n=None, unknown={"x": 1}),
    factories.chat_line("a") | {"url": "/chat/completions/"},
    factories.embedding_line("a", ["a", "b"], encoding_format="base64"),
    factories.embedding_line("a", [[1, 2], [3]]),
    factories.rerank_line("a", documents=["a"], top_n=1),
    factories.rerank_line("a") | {"url": "/v2/rerank"},
    responses(),
    responses(input=[{"role": "user", "content": "Hello"}], background=False, instructions="Be"),
    completion(prompt=["a", "b"], max_tokens=0),
    said(role="user", content=[{"type": "text", "text": "a"}, {"type": "image_url", "x": 1}]),
    said(role="assistant", tool_calls=CALLS),
    said(role="assistant", content=None, refusal="No."),
    said(role="function", name="f"),
]
BAD = [
    {},
    factories.chat_line(""),
    factories.chat_line("a" * 513),
    factories.chat_line("a\x00"),
    factories.chat_line("a") | {"method": "GET"},
    factories.chat_line("a") | {"url": "/v1/moderations"},
    factories.chat_line("a") | {"body": []},
    factories.chat_line("a", temperature=3),
    factories.chat_line("a", max_tokens=0),
    factories.chat_line("a", max_tokens=1.5),
    factories.chat_line("a", stream=True),
    factories.embedding_line("a", encoding_format="hex"),
    factories.embedding_line("a", {"text": "a"}),
    factories.rerank_line("a", query=""),
    factories.rerank_line("a", documents=[]),
    factories.rerank_line("a", documents=[{"title": "a"}]),
    responses(input=[]),
    responses(background=True),
    responses(previous_response_id="resp_1"),
    responses(stream=True),
    completion(n=129),
    said(role="user"),
    said(role="wizard", content="a"),
    said(role="user", content=[]),
    said(role="user", content=[{"type": "text"}]),
    said(role="assistant", content=None),
    said(content="a"),
]


def test_the_schemas_are_schemas() -> None:
    for schema in (INPUT.schema, RESULT.schema):
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("line", GOOD)
def test_a_line_that_validation_takes_fits(line: dict[str, Any]) -> None:
    assert is_good(line)
    INPUT.validate(line)


@pytest.mark.parametrize("line", BAD)
def test_a_line_of_another_form_fits_neither(line: dict[str, Any]) -> None:
    assert not is_good(line)
    assert not INPUT.is_valid(line)


def test_every_spelling_of_an_endpoint_has_a_form() -> None:
    assert set(line_schemas.FORMS) == set(ENDPOINTS)
    for endpoint in ENDPOINTS:
        assert spellings(endpoint)[0] == endpoint
        for url in spellings(endpoint):
            assert not INPUT.is_valid(factories.chat_line("a") | {"url": url, "body": {}})


@pytest.mark.parametrize(
    "columns",
    [
        (1, "a", 200, b'{"id": "x"}', None, None),
        (1, "a", 400, b'{"error": {"message": "No."}}', None, None),
        # An answer that was erased.
        (1, "a", 200, None, None, None),
        (0xFFFFFFF, "a\u2028", None, None, "batch_expired", "It was not run.", True),
        (1, "a", None, None, None, None),
    ],
)
def test_a_result_that_is_rendered_fits(columns: Any) -> None:
    line = json.loads(jsonl.result_line(UUID(int=1), *columns))
    RESULT.validate(line)
    for change in (
        {"response": None, "error": None},
        {"response": {"status_code": "200", "request_id": "r", "body": {}}, "error": None},
        {"custom_id": 1},
        {"id": None},
    ):
        assert not RESULT.is_valid(line | change)


@pytest.mark.parametrize("name", ["batch-line", "result-line"])
def test_a_schema_is_served_without_a_key(name: str) -> None:
    client = TestClient(app.create_app())
    answer = client.get(f"/schemas/{name}.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/schema+json")
    assert answer.json()["$id"] == f"http://testserver/schemas/{name}.json"
    again = client.get(f"/schemas/{name}.json", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_request_has_no_description_for_readers_of_the_code() -> None:
    parts = line_schemas.batch_line()["$defs"]
    for form in line_schemas.FORMS.values():
        assert "description" not in parts[form.__name__]
