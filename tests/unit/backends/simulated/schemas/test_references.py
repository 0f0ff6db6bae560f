"""References within a schema."""

from typing import Any

import pytest

from xalen_batch.backends.simulated.schemas.errors import InvalidSchema
from xalen_batch.backends.simulated.schemas.references import ADDRESS, References, addressed

ROOT: dict[str, Any] = {
    "$defs": {
        "a/b": {"title": "slash"},
        "m~n": {"title": "tilde"},
        "p%q r": {"title": "percent"},
        "~1": {"title": "both"},
        "": {"title": "empty"},
        "list": {"prefixItems": [{"title": "first"}]},
        "named": {"$anchor": "here", "title": "anchor"},
        "own": {"$id": "https://example.com/own", "$defs": {"x": {"title": "id"}}},
    }
}


@pytest.mark.parametrize(
    ("reference", "title"),
    [
        ("#/$defs/a~1b", "slash"),
        ("#/$defs/m~0n", "tilde"),
        ("#/$defs/p%25q%20r", "percent"),
        ("#/%24defs/~01", "both"),
        ("#/$defs/", "empty"),
        ("#/$defs/list/prefixItems/0", "first"),
        ("#here", "anchor"),
        ("https://example.com/own#/$defs/x", "id"),
        (f"{ADDRESS}#/$defs/a~1b", "slash"),
    ],
)
def test_targets(reference: str, title: str) -> None:
    assert References(ROOT).target(reference)["title"] == title


@pytest.mark.parametrize(
    "reference", ["#/$defs/none", "#none", "other.json", "#/$defs/list/prefixItems/1", "#/a/b/c"]
)
def test_what_is_not_there_is_an_error(reference: str) -> None:
    with pytest.raises(InvalidSchema):
        References(ROOT).target(reference)


def test_only_references_are_addressed_not_data_nor_names() -> None:
    schema = {
        "properties": {"default": {"$ref": "#/x"}, "$ref": {"type": "string"}},
        "const": {"$ref": "#/x"},
        "anyOf": [{"$ref": "#"}, {"$ref": "https://example.com/own"}],
    }
    assert addressed(schema) == {
        "properties": {"default": {"$ref": f"{ADDRESS}#/x"}, "$ref": {"type": "string"}},
        "const": {"$ref": "#/x"},
        "anyOf": [{"$ref": f"{ADDRESS}#"}, {"$ref": "https://example.com/own"}],
    }
