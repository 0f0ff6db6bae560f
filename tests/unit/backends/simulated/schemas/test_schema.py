"""Values for JSON Schemas, judged by the `jsonschema` package with formats checked."""

import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.backends.simulated.schemas.judge import PROMPT, judge, make
from tests.unit.backends.simulated.schemas.strategies import SCHEMAS
from xalen_batch.backends.simulated.prompt import Prompt
from xalen_batch.backends.simulated.schemas.errors import InvalidSchema, NoValue
from xalen_batch.backends.simulated.schemas.schema import Schema, load


@given(SCHEMAS, st.integers(0, 2**32))
def test_every_schema_that_can_be_met_gets_a_value_that_fits(schema: Any, seed: int) -> None:
    prompt = Prompt("", PROMPT.user, seed)
    assert make(schema, prompt) == make(schema, prompt)


KEYWORDS = st.sampled_from(
    [
        "type",
        "minimum",
        "maxLength",
        "properties",
        "required",
        "allOf",
        "anyOf",
        "not",
        "items",
        "uniqueItems",
        "minItems",
        "enum",
        "const",
        "pattern",
        "format",
        "$ref",
        "multipleOf",
        "if",
        "additionalProperties",
        "oneOf",
        "prefixItems",
        "contains",
        "propertyNames",
        "$defs",
    ]
)
VALUES = st.sampled_from(
    [0, 3, 1e9, 1e308, True, False, [], {}, ["a"], ["string", "null"]]
) | st.sampled_from(
    ["string", "integer", "object", "array", "null", "#", "#/$defs/type", "^a+$", "date"]
)


@given(
    st.recursive(
        VALUES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS, inner, max_size=4),
        max_leaves=10,
    )
)
def test_any_document_gets_a_value_that_fits_or_one_of_two_errors(document: Any) -> None:
    with suppress(InvalidSchema, NoValue):
        judge(document, Schema(document).value(PROMPT))


TICKET = {
    "type": "object",
    "properties": {
        "category": {"enum": ["shipping", "billing"]},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        "urgent": {"type": "boolean"},
        "order": {"$ref": "#/$defs/Order"},
        "note": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
    },
    "required": ["category", "confidence", "urgent", "order", "note", "tags"],
    "additionalProperties": False,
    "$defs": {"Order": {"type": "object", "properties": {"id": {"type": ["string", "null"]}}}},
}


def test_the_value_is_about_the_prompt() -> None:
    made = make(TICKET)
    assert made["category"] == "billing"
    assert 0.7 <= made["confidence"] <= 0.99
    assert isinstance(made["order"]["id"], str)
    assert made["note"] in PROMPT.user
    assert len(set(made["tags"])) == 2


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"const": {"a": [1, 2.5]}}, {"a": [1, 2.5]}),
        ({"type": "integer", "enum": ["a", 2, 2.5]}, 2),
        ({"allOf": [{"enum": [1, 2, 3]}, {"enum": [3.0, 4]}]}, 3),
        ({"enum": ["short", "much too long"], "maxLength": 5}, "short"),
        ({"type": "array", "uniqueItems": True, "items": {"type": "boolean"}, "minItems": 2}, None),
        ({"type": "integer", "minimum": 3, "exclusiveMaximum": 4}, 3),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 3}
         | {"exclusiveMinimum": True, "maximum": 4}, 4),
        ({"type": "object", "patternProperties": {"^x": {"const": 1}}, "required": ["xy"]}, {"xy": 1}),
        ({"type": "object", "additionalProperties": {"const": 1}, "required": ["n"]}, {"n": 1}),
        ({"prefixItems": [{"const": 1}, {"const": "a"}], "items": False, "type": "array"}, [1, "a"]),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "type": "array"}
         | {"items": [{"const": 1}], "additionalItems": False}, [1]),
        ({"$defs": {"a/b~c%d": {"const": 5}}, "$ref": "#/$defs/a~1b~0c%25d"}, 5),
        ({"$defs": {"x": {"$anchor": "here", "const": 6}}, "$ref": "#here"}, 6),
        ({"$id": "https://example.com/s", "$defs": {"x": {"const": 7}}, "$ref": "#/$defs/x"}, 7),
        ({"$schema": "https://example.com/my-dialect", "const": 8}, 8),
        ({"properties": {"enum": {"$ref": "#/$defs/x"}}, "required": ["enum"], "$defs": {"x": {"const": 9}}},
         {"enum": 9}),
        ({"if": {"type": "string"}, "then": False, "else": {"const": 1}}, 1),
        ({"oneOf": [{"const": 1}, {"enum": [1, 2]}]}, 2),
    ],
)  # fmt: skip
def test_examples(schema: dict[str, Any], expected: Any) -> None:
    made = make(schema)
    assert expected is None or made == expected


def test_a_recursion_is_shown_once_and_ends() -> None:
    node = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
        },
        "required": ["name", "next", "children"],
        "additionalProperties": False,
    }
    made = make({"$ref": "#/$defs/node", "$defs": {"node": node}})
    assert made["next"]["next"] is None
    assert made["children"][0]["children"] == []


def test_the_second_round_of_a_recursion_takes_the_shortest_way_out() -> None:
    deep = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    flat = {"type": "array", "items": {"$ref": "#"}}
    assert make({"anyOf": [deep, flat]}) == {"a": {"a": []}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {name: {"$ref": "#"} for name in "abcdefghij"}},
        {"type": "object", "properties": {str(number): {} for number in range(3_000)}},
        {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "maxItems": 9}}, "$ref": "#/$defs/a"},
    ],
)  # fmt: skip
def test_a_schema_without_bounds_gets_a_bounded_value(schema: dict[str, Any]) -> None:
    assert len(str(make(schema))) < 300_000


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "array", "minItems": 10**9}, "at most 2000 items"),
        ({"type": "array", "contains": {}, "minContains": 10**9}, "at most 2000 items"),
        ({"type": "string", "minLength": 10**9}, "at most 20000 characters"),
        ({"type": "object", "minProperties": 10**9}, "at most 2000 properties"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "above the greatest"),
        ({"type": "integer", "exclusiveMinimum": 4, "exclusiveMaximum": 5}, "within the bounds"),
        ({"type": "number", "multipleOf": 7, "minimum": 1, "maximum": 6}, "no multiple of 7"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength 3 is above maxLength 2"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "both string and integer"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "at a: the schema is false"),
        ({"properties": {"a": {"$ref": "#"}}, "type": "object", "required": ["a"]}, "without end"),
        ({"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "minItems": 3}, "differs from the others"),
        ({"type": "string", "format": "uuid", "maxLength": 5}, "format uuid"),
        ({"type": "string", "pattern": "^a$", "minLength": 2}, "pattern '^a$'"),
        ({"not": {}}, ""),
        (False, "false"),
    ],
)  # fmt: skip
def test_what_cannot_be_met_is_an_error_with_the_reason(schema: Any, reason: str) -> None:
    with pytest.raises(NoValue) as raised:
        Schema(schema).value(PROMPT)
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    "document",
    [
        {"type": "object", "properties": 3},
        {"type": "array", "minItems": "x"},
        {"type": "strin"},
        {"enum": 3},
        {"$ref": 1},
        {"$ref": "#/$defs/absent"},
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "file:///etc/hostname"},
        {"pattern": "("},
        "object",
        None,
    ],
)
def test_what_is_no_schema_is_refused(document: Any) -> None:
    with pytest.raises(InvalidSchema):
        Schema(document)


@pytest.mark.timing
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(a+)+$", "format": "email"},
        {"type": "string", "pattern": "((a?){900}){900}b"},
        {"anyOf": [{"allOf": [{"$ref": "#"}] * 20}] * 20},
        {"$defs": {f"d{number}": {"anyOf": [{"$ref": f"#/$defs/d{other}"} for other in range(12)]}
                   for number in range(12)}, "$ref": "#/$defs/d0"},
        {"type": "object", "required": ["a"], "properties": {"a": {"not": {"not": {"$ref": "#"}}}}},
        {"oneOf": [{"type": "array", "items": {"$ref": "#"}, "minItems": 3}] * 3},
        {"anyOf": [{"$ref": "#"}, {"type": "integer"}]},
        {"$defs": {f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in range(3_000)}
                  | {"d3000": {}}, "$ref": "#/$defs/d0"},
        {"allOf": [{"anyOf": [{"type": "integer"}, {"type": "string"}]}] * 2_000},
        {"type": "object", "required": [str(number) for number in range(20_000)]},
        {"type": "object", "required": [f"n{number}" for number in range(800)],
         "patternProperties": {f"^p{number}.*x": {} for number in range(800)}},
        {"type": "array", "minItems": 1_900, "items": {"enum": [str(number) for number in range(30_000)]}},
        {"type": "array", "minItems": 1_000,
         "items": {"type": "string", "minLength": 19_000, "pattern": "^[a-z]+$"}},
    ],
)  # fmt: skip
def test_no_schema_takes_long(schema: dict[str, Any]) -> None:
    began = time.process_time()
    with suppress(InvalidSchema, NoValue):
        make(schema)
    assert time.process_time() - began < 2


def test_lines_of_one_schema_share_its_compiled_form() -> None:
    assert load({"type": "integer"}) is load({"type": "integer"})
    large = {"enum": ["x" * 70_000]}
    assert load(large) is not load(large)
