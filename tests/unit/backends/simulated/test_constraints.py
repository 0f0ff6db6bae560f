"""Answers that must fit a schema, a regular expression or a choice."""

import re
from typing import Any

import orjson
import pytest
from hypothesis import given

from tests.unit.backends.simulated.asking import ask, choice, content, error, fault, said
from tests.unit.backends.simulated.schemas.judge import judge
from tests.unit.backends.simulated.schemas.strategies import SCHEMAS

SCHEMA = {
    "type": "object",
    "properties": {"category": {"enum": ["shipping", "billing"]}, "at": {"format": "date-time"}},
    "required": ["category", "at"],
    "additionalProperties": False,
}


def formatted(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, **more}}


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": formatted(SCHEMA, strict=True)},
        {"guided_json": SCHEMA},
        {"guided_json": orjson.dumps(SCHEMA).decode()},
        {"structured_outputs": {"json": SCHEMA}},
    ],
)
def test_json_fits_its_schema(body: dict[str, Any]) -> None:
    made = orjson.loads(content(**body))
    judge(SCHEMA, made)
    assert made["category"] == "billing"


@given(SCHEMAS)
def test_every_answer_to_a_json_schema_fits_it(schema: Any) -> None:
    judge(schema, orjson.loads(content(response_format=formatted(schema))))


@pytest.mark.parametrize("field", ["guided_regex", "structured_outputs"])
def test_the_whole_answer_matches_a_regex(field: str) -> None:
    pattern = r"(yes|no): \d{3}"
    body = {field: pattern if field == "guided_regex" else {"regex": pattern}}
    assert re.fullmatch(pattern, content(**body))


@pytest.mark.parametrize("field", ["guided_choice", "structured_outputs"])
def test_a_choice_fits_the_user_best(field: str) -> None:
    choices = ["shipping", "billing"]
    body = {field: choices if field == "guided_choice" else {"choice": choices}}
    assert content(**body) == "billing"


def test_a_text_format_is_plain() -> None:
    messages = said("The parcel never arrived here.", "Summarize in one sentence.")
    for plain in ({"type": "text"}, None):
        assert content(messages=messages, response_format=plain) == messages[1]["content"]


def test_json_is_cut_at_the_token_limit_like_any_text() -> None:
    made = choice(response_format=formatted(SCHEMA), max_tokens=3)
    assert made["finish_reason"] == "length"
    assert made["message"]["content"].startswith("{")


@pytest.mark.parametrize("structured", [{"json_object": True}, {"json": {"type": "object"}}])
def test_an_object_without_a_schema_is_an_object(structured: dict[str, Any]) -> None:
    made = orjson.loads(content(messages=said(""), structured_outputs=structured))
    assert isinstance(made, dict)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"response_format": "text"}, ("invalid_type", "response_format")),
        ({"response_format": {}}, ("missing_required_parameter", "response_format.type")),
        ({"response_format": {"type": "yaml"}}, ("invalid_value", "response_format.type")),
        ({"response_format": {"type": "json_schema"}},
         ("missing_required_parameter", "response_format.json_schema")),
        ({"response_format": {"type": "json_schema", "json_schema": []}},
         ("invalid_type", "response_format.json_schema")),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
         ("missing_required_parameter", "response_format.json_schema.name")),
        ({"response_format": formatted({"type": "strin"})}, (None, "response_format")),
        ({"response_format": formatted({"$ref": "https://example.com/"})}, (None, "response_format")),
        ({"response_format": formatted({"minimum": 2, "maximum": 1, "type": "integer"})},
         (None, "response_format")),
        ({"guided_json": "{"}, (None, "guided_json")),
        ({"guided_json": [1]}, (None, "guided_json")),
        ({"guided_regex": "("}, (None, "guided_regex")),
        ({"guided_regex": 3}, ("invalid_type", "guided_regex")),
        ({"guided_choice": "a"}, ("invalid_type", "guided_choice")),
        ({"guided_choice": []}, ("empty_array", "guided_choice")),
        ({"guided_grammar": "root ::= 'a'"}, (None, "guided_grammar")),
        ({"guided_json": {}, "guided_regex": "a"}, (None, "guided_regex")),
        ({"structured_outputs": []}, ("invalid_type", "structured_outputs")),
        ({"structured_outputs": {}}, (None, "structured_outputs")),
        ({"structured_outputs": {"json": {}, "choice": ["a"]}}, (None, "structured_outputs")),
        ({"structured_outputs": {"grammar": "x"}}, (None, "structured_outputs.grammar")),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
         (None, "structured_outputs")),
    ],
)  # fmt: skip
def test_invalid_constraints_are_refused(
    body: dict[str, Any], expected: tuple[str | None, str]
) -> None:
    assert error(ask(**body)) == (400, *expected)


def test_the_error_names_the_format_and_the_reason() -> None:
    invalid = fault(ask(response_format=formatted({"enum": 3})))
    assert (
        invalid["message"] == "Invalid schema for response_format 'it': 3 is not of type \"array\""
    )
    impossible = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    impossible["properties"]["a"] |= {"minLength": 2, "maxLength": 1}  # type: ignore[index]
    assert fault(ask(response_format=formatted(impossible)))["message"] == (
        "The simulated model finds no value for the schema of response_format 'it': at a: minLength"
        " 2 is above maxLength 1."
    )
