"""JSON mode: keys and types as the prompt spells them out."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.backends.simulated.asking import USER, content, said
from xalen_batch.backends.simulated.json_mode import schema_in

JSON = {"type": "json_object"}
STRING, NUMBER, INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}
BOOLEAN = {"type": "boolean"}
SHARE = {"type": "number", "minimum": 0, "maximum": 1}


def made(system: str, text: str = USER["content"]) -> Any:
    return orjson.loads(content(messages=said(text, system), response_format=JSON))


@pytest.mark.parametrize(
    ("prompt", "properties"),
    [
        ('{"category": "billing|shipping", "confidence": 0.9}',
         {"category": {"enum": ["billing", "shipping"]}, "confidence": SHARE}),
        ('{ "mood": "good" | "bad", "stars": number (1-5) }',
         {"mood": {"enum": ["good", "bad"]}, "stars": {**NUMBER, "minimum": 1, "maximum": 5}}),
        ('{"a": 3, "b": 2.5, "c": true, "d": "…", "e": null}',
         {"a": INTEGER, "b": NUMBER, "c": BOOLEAN, "d": STRING, "e": {"type": "null"}}),
        ("{name: <string>, ok: true/false, on: <date>}",
         {"name": STRING, "ok": BOOLEAN, "on": {"type": "string", "format": "date"}}),
        ('{"a": "string", "b": "integer", "c": "an email address", "d": "string|null"}',
         {"a": STRING, "b": INTEGER, "c": {"type": "string", "format": "email"},
          "d": {"type": ["string", "null"]}}),
        ('{"tags": ["…"], "ids": [1, 2], "names": string[], "scores": "list of numbers"}',
         {"tags": {"type": "array", "items": STRING}, "ids": {"type": "array", "items": INTEGER},
          "names": {"type": "array", "items": STRING}, "scores": {"type": "array", "items": NUMBER}}),
        ("{'a': 1, // the first\n 'b': \"x\",\n ...}", {"a": INTEGER, "b": STRING}),
        ("Keys: id (integer), title (string) and done (boolean)",
         {"id": INTEGER, "title": STRING, "done": BOOLEAN}),
        ("with keys category, score and summary", {"category": {}, "score": {}, "summary": {}}),
        ("- name (string): the name\n- age: integer from 0 to 120\n- **tags** – list of strings",
         {"name": STRING, "age": {**INTEGER, "minimum": 0, "maximum": 120},
          "tags": {"type": "array", "items": STRING}}),
        ('Return "label": one of a, b', {"label": {}}),
    ],
)  # fmt: skip
def test_keys_and_types_are_read(prompt: str, properties: dict[str, Any]) -> None:
    schema = schema_in(f"Answer in JSON. {prompt}" if "\n-" not in prompt else prompt)
    assert schema is not None
    assert schema["properties"] == properties
    assert schema["required"] == list(properties)


def test_an_object_within_an_object_is_read() -> None:
    found = made('Answer as {"user": {"name": "…", "age": 30}, "items": [{"id": 1}, …]}')
    assert isinstance(found["user"]["age"], int)
    assert isinstance(found["items"][0]["id"], int)


def test_a_json_schema_in_the_prompt_is_followed() -> None:
    schema = '{"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "required": ["a"], "$defs": {"A": {"enum": [7]}}}'
    assert made(f"Follow this schema: {schema}. Do not add keys.") == {"a": 7}


def test_values_are_about_the_prompt() -> None:
    prompt = (
        'Classify into one of: billing, shipping. Answer in JSON: {"category": "…", "confidence":'
        " 0.9}"
    )
    found = made(prompt)
    assert found["category"] == "billing"
    assert 0.7 <= found["confidence"] <= 1
    assert made("Give JSON with keys summary, score and urgent.")["score"] >= 0.7


@pytest.mark.parametrize(
    "prompt",
    ["JSON, please", "Use {placeholders} {{like}} {this}", "{", "- billing: a bill", ""],
)
def test_a_prompt_without_keys_gets_one(prompt: str) -> None:
    assert made(prompt).keys() == {"answer"}


def test_keys_in_the_users_text_count_if_the_system_names_none() -> None:
    assert made("Answer in JSON.", 'Fill in {"city": "…", "zip": 12345}').keys() == {"city", "zip"}


def test_a_schema_of_the_prompt_that_cannot_be_met_is_no_error() -> None:
    assert made('{"type": "object", "properties": {"a": {"type": "strin"}}}').keys() == {"a"}


@given(st.text(st.sampled_from("{}[]:,|\"'()ab 1.-\n\\")))
def test_no_prompt_raises(text: str) -> None:
    assert isinstance(made(text), dict)
