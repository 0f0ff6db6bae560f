"""Numbers within bounds."""

from typing import Any

import pytest

from xalen_batch.backends.simulated.schemas.errors import NoValue
from xalen_batch.backends.simulated.schemas.numbers import number
from xalen_batch.backends.simulated.schemas.shape import own_shape


def made(schema: dict[str, Any], variant: int = 0) -> int | float:
    whole = schema.get("type") == "integer"
    return number(own_shape(schema), is_whole=whole, share=0.8, variant=variant)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "integer"}, 8),
        ({"type": "number"}, 0.8),
        ({"type": "number", "minimum": 1, "maximum": 5}, 4.2),
        ({"type": "integer", "minimum": -3, "maximum": -3}, -3),
        ({"type": "integer", "exclusiveMinimum": -1, "exclusiveMaximum": 1}, 0),
        ({"type": "integer", "minimum": 0.5, "maximum": 1.5}, 1),
        ({"type": "number", "maximum": -100}, -100.2),
        ({"type": "integer", "minimum": 10**20}, 10**20 + 8),
        ({"type": "number", "minimum": 0.001, "exclusiveMaximum": 0.002}, 0.0018),
        ({"type": "integer", "multipleOf": 2.5, "minimum": 1, "maximum": 9}, 5),
        ({"type": "number", "multipleOf": 0.1, "minimum": 0, "maximum": 0.25}, 0.1),
    ],
)
def test_examples(schema: dict[str, Any], expected: float) -> None:
    assert made(schema) == expected


def test_a_multiple_is_one_in_floating_point_arithmetic_too() -> None:
    for variant in range(100):
        found = made({"type": "number", "multipleOf": 0.01, "maximum": 1}, variant)
        assert (found / 0.01).is_integer()


def test_variants_differ_until_the_range_is_used_up() -> None:
    small = {"type": "integer", "minimum": 1, "maximum": 5}
    assert {made(small, variant) for variant in range(5)} == {1, 2, 3, 4, 5}
    assert len({made({"type": "number"}, variant) for variant in range(50)}) > 30


@pytest.mark.parametrize(
    "schema",
    [
        {"minimum": 2, "maximum": 1},
        {"exclusiveMinimum": 1, "maximum": 1},
        {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2},
        {"multipleOf": 3, "minimum": 1, "maximum": 2},
    ],
)
def test_an_empty_range_is_an_error(schema: dict[str, Any]) -> None:
    with pytest.raises(NoValue):
        made(schema)
