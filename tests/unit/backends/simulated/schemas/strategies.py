"""JSON Schemas to draw: satisfiable by construction, of all keywords that matter."""

from typing import Any

from hypothesis import strategies as st

FORMATS = (
    "date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname",
    "ipv4", "ipv6", "uri", "uri-reference", "iri", "iri-reference", "uuid", "uri-template",
    "json-pointer", "relative-json-pointer", "regex", "color", "no-such-format",
)  # fmt: skip
PATTERNS = (
    r"^[A-Z]{2}-\d{4}$", r"^\+?[1-9]\d{1,14}$", r"[0-9a-f]{8}", r"^(foo|bar)(-\w+)?$", r"^\S+@\S+\.\w{2,}$",
    r"^(?=.*[A-Z])(?=.*\d).{8,}$", r"^(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)$", r"^#[a-f0-9]{3}$", r"\bword\b",
    r"^[^\s]+$", r"^\d{4}-(?:0[1-9]|1[0-2])$", r"^(a|b)\1$", r"a.c", r"^$", r"z$",
    r"^\/api\/v\d+$", r"^[^a-zA-Z]*$", r"^(?!x)\w{3}$",
)  # fmt: skip
NAMES = st.sampled_from(
    ["id", "name", "a/b", "m~n", "p%q", "naïve", "", "properties", "default", "enum", "is_open", "$ref", "x y"]
)  # fmt: skip


@st.composite
def strings(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["plain", "format", "pattern", "long"]))
    if kind == "format":
        return {"type": "string", "format": draw(st.sampled_from(FORMATS))}
    if kind == "pattern":
        return {"type": "string", "pattern": draw(st.sampled_from(PATTERNS))}
    if kind == "long":
        least = draw(st.integers(0, 300))
        return {
            "type": "string",
            "pattern": "^[a-z ]*$",
            "minLength": least,
            "maxLength": least + 3,
        }
    least = draw(st.integers(0, 40))
    return {
        "type": "string",
        "minLength": least,
        "maxLength": draw(st.integers(least, 60)),
    }


@st.composite
def numbers(draw: st.DrawFn) -> dict[str, Any]:
    is_whole = draw(st.booleans())
    low = draw(st.integers(-(10**6), 10**6) if is_whole else st.floats(-1e6, 1e6))
    width = draw(st.integers(2, 1_000))
    schema: dict[str, Any] = {"type": "integer" if is_whole else "number"}
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = low
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = low + width
    if draw(st.booleans()):
        schema["multipleOf"] = draw(
            st.sampled_from([1, 2] if is_whole else [0.01, 0.1, 0.25, 0.5, 1, 1.5])
        )
        if width < 4:
            schema.pop("maximum", None)
            schema.pop("exclusiveMaximum", None)
    return schema


SCALARS = (
    strings()
    | numbers()
    | st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": ["string", "null"]},
            {"type": ["integer", "string"], "minimum": 3},
            {"enum": ["a", 1, None, [2], {"b": 3}]},
            {"type": "string", "enum": ["open", "closed", "other"]},
            {"const": {"x": [1, 2.5]}},
            {"type": "integer", "enum": ["a", 2]},
            {"not": {"type": "string"}},
            {"type": "integer", "minimum": 0, "not": {"multipleOf": 2}},
            True,
            {},
        ]
    )
)


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    kind = draw(st.sampled_from(["plain", "tuple", "unique", "contains"]))
    if kind == "unique":
        schema |= {"uniqueItems": True, "minItems": draw(st.integers(0, 5))}
        schema["items"] = draw(
            st.sampled_from(
                [
                    {"type": "integer"},
                    {"type": "string"},
                    {"type": "string", "format": "date"},
                    {"enum": [1, 2, 3, 4, 5]},
                    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                    {"type": "string", "maxLength": 2},
                ]
            )
        )
        return schema
    if kind == "tuple":
        schema["prefixItems"] = draw(st.lists(inner, min_size=1, max_size=3))
        schema["items"] = draw(st.booleans())
        return schema
    schema["items"] = {"type": "integer"} if kind == "contains" else draw(inner)
    if kind == "contains":
        schema |= {"contains": {"minimum": 100}, "minContains": draw(st.integers(0, 3))}
    schema["minItems"] = draw(st.integers(0, 3))
    if draw(st.booleans()):
        schema["maxItems"] = schema["minItems"] + 3
    return schema


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    properties = draw(st.dictionaries(NAMES, inner, max_size=5))
    names = sorted(properties)
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "required": draw(st.lists(st.sampled_from(names), unique=True)) if names else [],
    }
    kind = draw(st.sampled_from(["closed", "open", "map", "patterns", "dependent", "named"]))
    if kind == "closed":
        return schema | {"additionalProperties": False}
    if kind == "map":
        schema["additionalProperties"] = draw(inner)
        schema["minProperties"] = draw(st.integers(0, 6))
    if kind == "patterns":
        schema["patternProperties"] = {"^x-": draw(inner)}
        schema |= {"additionalProperties": False, "minProperties": len(properties) + 1}
    if kind == "dependent" and names:
        schema["dependentRequired"] = {names[0]: ["other"]}
    if kind == "named":
        return {"type": "object", "propertyNames": {"pattern": "^[a-z]{1,8}$"}, "minProperties": 2}
    if kind != "patterns":
        schema["required"] = [*schema["required"], "not_described"]
    return schema


@st.composite
def combined(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    kind = draw(st.sampled_from(["anyOf", "oneOf", "allOf", "bounds", "if"]))
    if kind == "anyOf":
        return {"anyOf": [*draw(st.lists(inner, min_size=1, max_size=3)), False]}
    if kind == "oneOf":
        each = [
            {
                "type": "object",
                "properties": {"kind": {"const": name}, "value": draw(inner)},
                "required": ["kind", "value"],
                "additionalProperties": False,
            }
            for name in ("one", "two")
        ]
        return {"oneOf": each}
    if kind == "allOf":
        return {
            "type": "object",
            "allOf": [
                {"properties": {"a": draw(inner)}, "required": ["a"]},
                {"properties": {"b": draw(inner)}, "required": ["b"]},
            ],
            "unevaluatedProperties": False,
        }
    if kind == "bounds":
        low = draw(st.integers(-50, 50))
        return {
            "allOf": [{"minimum": low}, {"type": "number", "exclusiveMaximum": low + 1}],
            "minimum": low - 5,
        }
    return {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}, "b": draw(inner)},
        "required": ["a"],
        "if": {"properties": {"a": {"const": "x"}}},
        "then": {"required": ["b"]},
    }


REFERENCES = st.sampled_from(
    [
        "#/$defs/tree",
        "#/$defs/a~1b~0c",
        "#/$defs/p%25q",
        "#/$defs/list",
        "#leaf",
        "#/$defs/pair%20of/prefixItems/0",
    ]
).map(lambda reference: {"$ref": reference})
DEFINITIONS: dict[str, Any] = {
    "tree": {
        "type": "object",
        "properties": {
            "value": {"type": "integer"},
            "left": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
            "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
        },
        "required": ["value", "left", "children"],
        "additionalProperties": False,
    },
    "list": {
        "oneOf": [
            {"type": "null"},
            {
                "type": "object",
                "properties": {"next": {"$ref": "#/$defs/list"}},
                "required": ["next"],
            },
        ]
    },
    "a/b~c": {"type": "integer", "minimum": 5},
    "p%q": {"type": "string", "format": "uuid"},
    "named": {"$anchor": "leaf", "type": "boolean"},
    "pair of": {"prefixItems": [{"type": "number"}]},
}
PARTS = st.recursive(
    SCALARS | REFERENCES,
    lambda inner: arrays(inner) | objects(inner) | combined(inner),
    max_leaves=8,
)
SCHEMAS = PARTS.map(
    lambda part: (
        {"$defs": DEFINITIONS, "allOf": [part]}
        if isinstance(part, bool)
        else {**part, "$defs": DEFINITIONS}
    )
)
