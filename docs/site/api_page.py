"""The API's own description (`/openapi.json`) as a page."""

import json
import re
from collections.abc import Iterator
from typing import Any

from xalen_batch.api.app import create_app

Json = dict[str, Any]
NOTE = (
    "Written from the API's own description, which each server has at `/openapi.json`,"
    " and at `/docs` to try."
)


def page() -> str:
    """Markdown: every operation by its tag, then every shape that they name."""
    described = create_app().openapi()
    shapes: Json = described["components"]["schemas"]
    tags: dict[str, list[str]] = {}
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            tag = operation.get("tags", ["health"])[0]
            tags.setdefault(tag, []).append(_operation(method.upper(), path, operation))
    parts = ["# HTTP API", NOTE]
    for tag, operations in tags.items():
        parts += [f"## {tag.capitalize()}", *operations]
    parts.append("## Shapes")
    for name, shape in sorted(shapes.items()):
        heading = f"### {_title(name)} {{ #{name.lower()} }}"
        parts += [heading, *_words(shape), _table(shape) or _kind(shape)]
    return "\n\n".join(parts) + "\n"


def _title(name: str) -> str:
    """`ListObject_FileObject_` is a ListObject of FileObjects."""
    outer, _, inner = name.partition("_")
    return f"{outer} of {inner.rstrip('_')}" if inner else name


def _operation(method: str, path: str, operation: Json) -> str:
    parts = [f"### `{method} {path}`", *_words(operation)]
    if parameters := operation.get("parameters"):
        rows = [
            (
                f"`{each['name']}`",
                f"{each['in']}, {_kind(each['schema'])}",
                each.get("required"),
                _text(each),
            )
            for each in parameters
        ]
        parts += ["Parameters:", _rows(rows)]
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        fields = _table(content["schema"])
        parts.append(f"Body, `{media}`: {'' if fields else _kind(content['schema'])}".strip())
        parts += [fields] if fields else []
    for status, answer in operation["responses"].items():
        if status == "200":
            for media, content in answer.get("content", {}).items():
                parts.append(f"Answer, `{media}`: {_kind(content['schema'])}")
    return "\n\n".join(parts)


def _words(described: Json) -> Iterator[str]:
    if text := _text(described):
        yield text


def _text(described: Json) -> str:
    """A description on one line, safe in a table."""
    text = described.get("description") or described.get("schema", {}).get("description") or ""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;").replace("{", "&#123;")


def _table(shape: Json) -> str:
    required = shape.get("required", [])
    rows = [
        (f"`{name}`", _kind(field), name in required, _text(field) + _scope(field))
        for name, field in shape.get("properties", {}).items()
    ]
    return _rows(rows) if rows else ""


def _scope(field: Json) -> str:
    return f" Needs the scope `{field['x-scope']}`." if "x-scope" in field else ""


def _rows(rows: list[tuple[str, str, bool | None, str]]) -> str:
    lines = [
        f"| {name} | {kind} | {'yes' if needed else ''} | {text} |"
        for name, kind, needed, text in rows
    ]
    return "\n".join(("| Name | Type | Required | Meaning |", "|---|---|---|---|", *lines))


def _kind(schema: Json) -> str:
    """A type in words, with links to named shapes."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{_title(name)}](#{name.lower()})"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_kind(each) for each in schema[key]))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if kind == "object" and isinstance(inner := schema.get("additionalProperties"), dict):
        return f"object of {_kind(inner)}"
    return f"{kind} ({schema['format']})" if "format" in schema else str(kind)
