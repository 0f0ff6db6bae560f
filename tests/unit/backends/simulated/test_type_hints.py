"""Types that people name in prompts."""

from typing import Any

import pytest

from xalen_batch.backends.simulated.type_hints import hinted, of_example, of_literal


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ("string", {"type": "string"}),
        ("an optional whole number", {}),
        ("an integer between 1 and 5", {"type": "integer", "minimum": 1, "maximum": 5}),
        ("<float> 0.0-1.0", {"type": "number", "minimum": 0.0, "maximum": 1.0}),
        ("number (5-1)", {"type": "number"}),
        ("array of integers", {"type": "array", "items": {"type": "integer"}}),
        ("list[string]", {"type": "array", "items": {"type": "string"}}),
        ("string[]", {"type": "array", "items": {"type": "string"}}),
        ("ISO 8601 date", {"type": "string", "format": "date"}),
        ("true or false", {"type": "boolean"}),
        ("interesting facts", {}),
        ("", {}),
    ],
)
def test_hints(hint: str, expected: dict[str, Any]) -> None:
    assert hinted(hint) == expected


def test_an_example_string_is_a_type_a_choice_or_a_string() -> None:
    assert of_example("low|medium|high") == {"enum": ["low", "medium", "high"]}
    assert of_example("<a> | null") == {"enum": ["a"]}
    assert of_example("string|null") == {"type": ["string", "null"]}
    assert of_example("The name of the customer") == {"type": "string"}


def test_a_literal_is_a_value_or_a_type() -> None:
    assert of_literal("0.5") == {"type": "number", "minimum": 0, "maximum": 1}
    assert of_literal("-2.5e3") == {"type": "number"}
    assert of_literal("12") == {"type": "integer"}
    assert of_literal("boolean") == {"type": "boolean"}
    assert of_literal("something") == {}
