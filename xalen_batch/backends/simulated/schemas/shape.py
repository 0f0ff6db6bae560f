"""A schema as the intersection of its parts: `$ref`, `allOf` and its own keywords in one table.

Keywords that cannot be merged are collected. A property must fit what every layer of `properties`
says of it, an item what every layer of `items` says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import lcm
from typing import Any, NamedTuple

from xalen_batch.backends.simulated.schemas.checks import canonical, matches
from xalen_batch.backends.simulated.schemas.errors import InvalidSchema, NoValue

LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")


class ObjectLayer(NamedTuple):
    """What one schema says of an object's properties."""

    properties: Mapping[str, Any]
    patterns: Mapping[str, Any]
    others: Any

    def of(self, name: str) -> list[Any]:
        """The schemas that a property must fit."""
        found = [self.properties[name]] if name in self.properties else []
        found += [schema for pattern, schema in self.patterns.items() if matches(pattern, name)]
        return found or [self.others]

    def names(self, name: str) -> bool:
        return name in self.properties or any(matches(pattern, name) for pattern in self.patterns)


class ArrayLayer(NamedTuple):
    """What one schema says of an array's items."""

    first: list[Any]
    others: Any

    def of(self, index: int) -> Any:
        return self.first[index] if index < len(self.first) else self.others


class Contained(NamedTuple):
    schema: Any
    least: int


@dataclass(frozen=True, slots=True)
class Shape:
    """A merged schema.

    `choices` are lists of schemas of which one must fit. `is_checked`: a value made from this shape
    may still not fit the schema, so it is validated. `references`: those that were followed.
    """

    kinds: tuple[str, ...] | None = None
    values: tuple[Any, ...] | None = None
    bounds: Mapping[str, Any] = field(default_factory=dict)
    step: Fraction | None = None
    patterns: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    objects: tuple[ObjectLayer, ...] = ()
    arrays: tuple[ArrayLayer, ...] = ()
    unevaluated: tuple[Any, ...] = ()
    names: tuple[Any, ...] = ()
    contains: tuple[Contained, ...] = ()
    is_unique: bool = False
    choices: tuple[tuple[Any, ...], ...] = ()
    is_checked: bool = False
    references: frozenset[str] = frozenset()

    def bound(self, name: str, default: Any = None) -> Any:
        return self.bounds.get(name, default)

    @property
    def is_enum(self) -> bool:
        """Whether a type and `values` are all that the schema says."""
        return self == Shape(self.kinds, self.values, references=self.references)

    def property_schema(self, name: str) -> Any:
        """The schema of a property."""
        found = [schema for layer in self.objects for schema in layer.of(name)]
        if self.unevaluated and not any(layer.names(name) for layer in self.objects):
            found += self.unevaluated
        return _all_of(found)

    def item_schema(self, index: int, more: list[Any]) -> Any:
        """The schema of an item; `more` are further schemas that it must fit."""
        return _all_of([layer.of(index) for layer in self.arrays] + more)

    def and_(self, other: "Shape") -> "Shape":
        """The intersection of two shapes. Raises NoValue if it is empty."""
        return Shape(
            kinds=_kinds(self.kinds, other.kinds),
            values=_values(self.values, other.values),
            bounds=_bounds(self.bounds, other.bounds),
            step=_step(self.step, other.step),
            patterns=_union(self.patterns, other.patterns),
            formats=_union(self.formats, other.formats),
            required=_union(self.required, other.required),
            objects=self.objects + other.objects,
            arrays=self.arrays + other.arrays,
            unevaluated=self.unevaluated + other.unevaluated,
            names=self.names + other.names,
            contains=self.contains + other.contains,
            is_unique=self.is_unique or other.is_unique,
            choices=self.choices + other.choices,
            is_checked=self.is_checked or other.is_checked,
            references=self.references | other.references,
        )

    def without_first_choice(self) -> "Shape":
        return replace(self, choices=self.choices[1:])


def is_of(kinds: tuple[str, ...], value: Any) -> bool:
    """Whether a value has one of these types."""
    if isinstance(value, bool):
        return "boolean" in kinds
    if isinstance(value, int | float):
        is_whole = isinstance(value, int) or value.is_integer()
        return "number" in kinds or ("integer" in kinds and is_whole)
    return _TYPES[type(value)] in kinds


_TYPES = {str: "string", list: "array", dict: "object", type(None): "null"}


def _all_of(schemas: list[Any]) -> Any:
    told = [schema for schema in schemas if schema is not True and schema != {}]
    return told[0] if len(told) == 1 else {"allOf": told} if told else True


def _union(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one + other)) if one and other else one or other


def _kinds(one: tuple[str, ...] | None, other: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if one is None or other is None:
        return one if other is None else other
    both = tuple(kind for kind in one if kind in other or (kind == "integer" and "number" in other))
    if "number" in one and "integer" in other and "integer" not in both:
        both += ("integer",)
    if not both:
        raise NoValue(f"no value is both {' or '.join(one)} and {' or '.join(other)}")
    return both


def _values(one: tuple[Any, ...] | None, other: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    if one is None or other is None:
        return one if other is None else other
    allowed = {canonical(value) for value in other}
    both = tuple(value for value in one if canonical(value) in allowed)
    if not both:
        raise NoValue("no value is in all of the enums")
    return both


def _bounds(one: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    if not one or not other:
        return one or other
    both = {**one, **other}
    for name in one.keys() & other.keys():
        both[name] = (max if name in LEAST else min)(one[name], other[name])
    return both


def _step(one: Fraction | None, other: Fraction | None) -> Fraction | None:
    if one is None or other is None:
        return one if other is None else other
    return Fraction(
        lcm(one.numerator * other.denominator, other.numerator * one.denominator),
        one.denominator * other.denominator,
    )


def own_shape(schema: Mapping[str, Any]) -> Shape:
    """The shape of a schema's own keywords, without `$ref` and `allOf`."""
    kind = schema.get("type")
    return Shape(
        kinds=None if kind is None else (kind,) if isinstance(kind, str) else tuple(kind),
        values=(schema["const"],)
        if "const" in schema
        else tuple(schema["enum"])
        if "enum" in schema
        else None,
        bounds=_own_bounds(schema),
        step=exact(schema["multipleOf"]) if "multipleOf" in schema else None,
        patterns=(schema["pattern"],) if "pattern" in schema else (),
        formats=(schema["format"],) if "format" in schema else (),
        required=tuple(dict.fromkeys(schema.get("required", ()))),
        objects=_own_objects(schema),
        arrays=_own_arrays(schema),
        unevaluated=(schema["unevaluatedProperties"],) if "unevaluatedProperties" in schema else (),
        names=(schema["propertyNames"],) if "propertyNames" in schema else (),
        contains=(Contained(schema["contains"], schema.get("minContains", 1)),)
        if "contains" in schema
        else (),
        is_unique=schema.get("uniqueItems") is True,
        choices=_own_choices(schema),
        is_checked=not _CHECKED.isdisjoint(schema),
    )


# Keywords that this module does not follow, or not fully.
_CHECKED = frozenset(
    {
        "not",
        "oneOf",
        "if",
        "contains",
        "maxContains",
        "propertyNames",
        "unevaluatedItems",
        "unevaluatedProperties",
        "dependentSchemas",
        "dependencies",
    }
)


def exact(number: Any) -> Fraction:
    """A JSON number as the decimal that its author wrote. Raises InvalidSchema for infinity."""
    try:
        return Fraction(str(number))
    except ValueError as error:
        raise InvalidSchema(f"{number} is out of range.") from error


def _own_bounds(schema: Mapping[str, Any]) -> dict[str, Any]:
    bounds = {name: schema[name] for name in LEAST + MOST if name in schema}
    # Draft 4 has flags beside `minimum` and `maximum`.
    for side in ("Minimum", "Maximum"):
        if isinstance(flag := bounds.get(f"exclusive{side}"), bool):
            del bounds[f"exclusive{side}"]
            if flag and side.lower() in bounds:
                bounds[f"exclusive{side}"] = bounds[side.lower()]
    return bounds


def _own_objects(schema: Mapping[str, Any]) -> tuple[ObjectLayer, ...]:
    if schema.keys().isdisjoint(("properties", "patternProperties", "additionalProperties")):
        return ()
    return (
        ObjectLayer(
            schema.get("properties", {}),
            schema.get("patternProperties", {}),
            schema.get("additionalProperties", True),
        ),
    )


def _own_arrays(schema: Mapping[str, Any]) -> tuple[ArrayLayer, ...]:
    items = schema.get("items", True)
    if isinstance(items, list):
        # A tuple, before draft 2020-12.
        return (ArrayLayer(items, schema.get("additionalItems", True)),)
    if "items" not in schema and "prefixItems" not in schema:
        return ()
    return (ArrayLayer(schema.get("prefixItems", []), items),)


def _own_choices(schema: Mapping[str, Any]) -> tuple[tuple[Any, ...], ...]:
    choices = [tuple(schema[name]) for name in ("anyOf", "oneOf") if name in schema]
    if "if" in schema and ("then" in schema or "else" in schema):
        choices.append(
            ({"allOf": [schema["if"], schema.get("then", True)]}, schema.get("else", True))
        )
    for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
        for name, wanted in schema.get(keyword, {}).items():
            demand = {"required": wanted} if isinstance(wanted, list) else wanted
            choices.append((demand, {"properties": {name: False}}))
    return tuple(choices)
