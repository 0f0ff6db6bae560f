"""Values for a schema: the part of the generator that follows alternatives and makes containers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from xalen_batch.backends.simulated.prompt import Prompt
from xalen_batch.backends.simulated.schemas import checks
from xalen_batch.backends.simulated.schemas.budget import Budget
from xalen_batch.backends.simulated.schemas.errors import NoValue
from xalen_batch.backends.simulated.schemas.heights import Heights
from xalen_batch.backends.simulated.schemas.numbers import number
from xalen_batch.backends.simulated.schemas.references import ADDRESS, References
from xalen_batch.backends.simulated.schemas.shape import Shape, is_of
from xalen_batch.backends.simulated.schemas.strings import string

# Values in one answer.
MOST_VALUES = 2_000
# Steps of compiling a validator, and of matching a regular expression.
PER_VALIDATOR, PER_PATTERN = 5, 2
# Values of an enum that are looked at in one step.
PER_STEP = 50
# Levels after which the smallest value is made, and levels in all.
DEEP, DEEPEST = 6, 40
# From this variant on, optional properties are left out.
SPARSE = 64
# Variants after which another type is made.
PER_TYPE = 8
# Variants of a value that has to be validated, since not all of its keywords are followed.
VARIANTS = (0, 1, 2, 3, PER_TYPE, 2 * PER_TYPE, 3 * PER_TYPE, SPARSE, SPARSE + 1)
# Variants of an item that must differ from others.
MOST_VARIANTS = 256
NAMES = ("key", "name", "value", "entry", "field", "item")
TYPES = ("string", "integer", "number", "object", "array", "boolean", "null")


class Document(Protocol):
    """The schema as a whole."""

    root: Any
    references: References

    def own_shape(self, part: Mapping[str, Any]) -> Shape: ...

    def validator(self, part: Any) -> checks.Validator: ...


class _Place:
    """Where a value is: its key, how deep, and which references lead to it."""

    __slots__ = ("depth", "is_small", "key", "references")

    def __init__(self, key: str, depth: int, references: frozenset[str], *, is_small: bool) -> None:
        self.key = key
        self.depth = depth
        self.references = references
        # Make the smallest value: the schema refers to itself, or the answer is large.
        self.is_small = is_small


class Generator:
    """Makes one value. The prompt and the variant decide it, so it is the same each time."""

    def __init__(self, document: Document, prompt: Prompt, budget: Budget) -> None:
        self._document = document
        self._prompt = prompt
        self._budget = budget
        self._heights = Heights(document.references, budget)
        self._guesses: dict[str, Any] = {}
        self._values = 0

    def value(self, variant: int = 0) -> Any:
        """A value of the document's root, which probably is valid. Raises NoValue."""
        root = self._document.root
        if self._heights.of(root, _ROOT) == float("inf"):
            raise NoValue("only values without end fit the schema, or none")
        place = _Place("", 0, _ROOT, is_small=False)
        return self._value(root, place, variant)

    def _value(self, schema: Any, place: _Place, variant: int) -> Any:
        if place.depth > DEEPEST:
            raise NoValue("the value would be nested too deeply")
        checked: checks.Validator | None = None
        reason = NoValue("no alternative has a value")
        for shape in self._expanded(self._shape(schema), place, variant):
            for more in VARIANTS if shape.is_checked else VARIANTS[:1]:
                try:
                    value = self._of(schema, shape, place, variant + more)
                except NoValue as error:
                    reason = error
                    continue
                if not shape.is_checked:
                    return value
                checked = checked or self._validator(schema)
                if checks.fits(checked, value):
                    return value
        raise reason

    def _shape(self, schema: Any, path: frozenset[str] = frozenset()) -> Shape:
        """The schema with its references and `allOf` merged. Raises NoValue."""
        self._budget.spend()
        if schema is False:
            raise NoValue("the schema is false")
        if not isinstance(schema, Mapping):
            return _ANY
        shape = self._document.own_shape(schema)
        for name in ("$ref", "$dynamicRef"):
            if name in schema:
                shape = shape.and_(self._referred(schema[name], path))
        for part in schema.get("allOf", ()):
            shape = shape.and_(self._shape(part, path))
        return shape

    def _referred(self, reference: str, path: frozenset[str]) -> Shape:
        if reference in path:
            raise NoValue(f"{reference} refers to itself")
        followed = Shape(references=frozenset({reference}))
        target = self._document.references.target(reference)
        return followed.and_(self._shape(target, path | {reference}))

    def _expanded(self, shape: Shape, place: _Place, variant: int) -> Iterator[Shape]:
        """The shape with one option of each of its choices, the preferred options first."""
        if not shape.choices:
            yield shape
            return
        options = self._ordered(shape.choices[0], place, variant)
        rest = shape.without_first_choice()
        for option in options:
            try:
                merged = rest.and_(self._shape(option))
            except NoValue:
                continue
            yield from self._expanded(merged, place, variant)

    def _ordered(self, options: Sequence[Any], place: _Place, variant: int) -> list[Any]:
        if place.is_small:
            return sorted(options, key=lambda option: self._heights.of(option, place.references))
        if turn := variant // PER_TYPE % len(options):
            return [*options[turn:], *options[:turn]]
        return sorted(options, key=_is_null)

    def _of(self, schema: Any, shape: Shape, place: _Place, variant: int) -> Any:
        """A value of a shape without choices, which was merged from a schema."""
        self._values += 1
        if self._values > 2 * MOST_VALUES:
            raise NoValue(f"simulated answers have at most {2 * MOST_VALUES} values")
        if shape.values is not None:
            return self._constant(schema, shape, variant)
        reason = NoValue("no type has a value")
        for kind in self._kinds(shape, place, variant):
            try:
                return self._of_kind(kind, shape, place, variant)
            except NoValue as error:
                reason = error
        raise reason

    def _kinds(self, shape: Shape, place: _Place, variant: int) -> Sequence[str]:
        kinds = shape.kinds
        if kinds is None:
            likely = _likely(shape) or self._guessed_kind(shape, place)
            kinds = (likely, *(kind for kind in TYPES if kind != likely))
        elif len(kinds) == 1:
            return kinds
        elif place.is_small:
            kinds = tuple(sorted(kinds, key=lambda kind: kind in ("object", "array")))
        else:
            kinds = tuple(sorted(kinds, key=lambda kind: kind == "null"))
        turn = variant % SPARSE // PER_TYPE % len(kinds)
        return kinds[turn:] + kinds[:turn]

    def _guessed_kind(self, shape: Shape, place: _Place) -> str:
        """The type of a value of which a schema says nothing but its key."""
        guess = None if shape.bounds or shape.patterns else self._guess(place.key)
        if isinstance(guess, bool):
            return "boolean"
        return "number" if isinstance(guess, float) else "string"

    def _of_kind(self, kind: str, shape: Shape, place: _Place, variant: int) -> Any:
        if kind == "object":
            return self._object(shape, place, variant)
        if kind == "array":
            return self._array(shape, place, variant)
        if kind == "null":
            return None
        if kind == "boolean":
            return bool(self._guess(f"is_{place.key}")) ^ bool(variant & 1)
        if kind in ("integer", "number"):
            return number(
                shape, is_whole=kind == "integer", share=self._prompt.share, variant=variant
            )
        guess = self._guess(place.key)
        text = guess if isinstance(guess, str) else self._guess("summary")
        return string(shape, text, self._prompt.seed, variant, self._budget)

    def _validator(self, schema: Any) -> checks.Validator:
        self._budget.spend(PER_VALIDATOR)
        return self._document.validator(schema)

    def _guess(self, key: str) -> Any:
        if key not in self._guesses:
            self._guesses[key] = self._prompt.guess(key)
        return self._guesses[key]

    def _constant(self, schema: Any, shape: Shape, variant: int) -> Any:
        """One of the values of an enum that the other keywords allow."""
        values = shape.values or ()
        self._budget.spend(len(values) // PER_STEP)
        if shape.kinds is not None:
            values = tuple(value for value in values if is_of(shape.kinds, value))
        if not shape.is_enum:
            checked = self._validator(schema)
            self._budget.spend(len(values))
            values = tuple(value for value in values if checks.fits(checked, value))
        if not values:
            raise NoValue("no value of the enum fits the other keywords")
        return self._choice(values, variant)

    def _choice(self, values: tuple[Any, ...], variant: int) -> Any:
        labels = tuple(value for value in values if isinstance(value, str))
        first = (
            values.index(self._prompt.classified(labels))
            if labels
            else self._prompt.seed % len(values)
        )
        return values[(first + variant) % len(values)]

    def _inner(self, shape: Shape, place: _Place, key: str) -> _Place:
        """The place of a property or an item."""
        return _Place(
            key,
            place.depth + 1,
            place.references | shape.references,
            is_small=place.is_small
            or place.depth >= DEEP
            or not place.references.isdisjoint(shape.references)
            or self._values > MOST_VALUES,
        )

    def _object(self, shape: Shape, place: _Place, variant: int) -> dict[str, Any]:
        inner = self._inner(shape, place, "")
        made: dict[str, Any] = {}
        most = shape.bound("maxProperties")
        if most is not None and len(shape.required) > most:
            raise NoValue("more properties are required than maxProperties allows")
        names = dict.fromkeys(
            [*(name for layer in shape.objects for name in layer.properties), *shape.required]
        )
        required = frozenset(shape.required)
        room = len(names) if most is None else int(most) - len(required)
        for position, name in enumerate(names):
            if name in required:
                made[name] = self._property(shape, inner, name, variant >> position)
            elif room > 0 and self._is_wanted(shape, inner, name, variant):
                try:
                    made[name] = self._property(shape, inner, name, variant >> position)
                    room -= 1
                except NoValue:
                    continue
        self._fill(shape, inner, made, variant)
        return made

    def _property(self, shape: Shape, inner: _Place, name: str, variant: int) -> Any:
        place = _Place(name, inner.depth, inner.references, is_small=inner.is_small)
        try:
            return self._value(self._schema_of(shape, name), place, variant)
        except NoValue as error:
            raise error.under(name) from error

    def _schema_of(self, shape: Shape, name: str) -> Any:
        self._budget.spend(PER_PATTERN * sum(len(layer.patterns) for layer in shape.objects))
        return shape.property_schema(name)

    def _is_wanted(self, shape: Shape, inner: _Place, name: str, variant: int) -> bool:
        """Whether an optional property is made: all are, except in the smallest values."""
        if variant & SPARSE:
            return False
        if not inner.is_small:
            return True
        schema = self._schema_of(shape, name)
        kind = schema.get("type") if isinstance(schema, Mapping) else None
        return self._values < MOST_VALUES and kind in ("string", "integer", "number", "boolean")

    def _fill(self, shape: Shape, inner: _Place, made: dict[str, Any], variant: int) -> None:
        """Add properties that the schema does not name. A map has at least one."""
        least = int(shape.bound("minProperties", 0))
        if least > MOST_VALUES:
            raise NoValue(f"simulated objects have at most {MOST_VALUES} properties, not {least}")
        is_map = not made and not inner.is_small and _is_map(shape)
        for index in range(MOST_VARIANTS + least):
            if len(made) >= max(least, is_map):
                return
            try:
                name = self._new_name(shape, index + variant)
                if name not in made:
                    made[name] = self._property(shape, inner, name, index)
            except NoValue:
                if len(made) >= least:
                    return
        if len(made) < least:
            raise NoValue(f"found no {least} properties that are allowed")

    def _new_name(self, shape: Shape, index: int) -> str:
        patterns = [pattern for layer in shape.objects for pattern in layer.patterns]
        allowed = self._shape({"allOf": list(shape.names)})
        if allowed.values is not None:
            return str(self._choice(allowed.values, index))
        if patterns and not allowed.patterns:
            allowed = allowed.and_(Shape(patterns=(patterns[index % len(patterns)],)))
        guess = NAMES[index % len(NAMES)] + (str(index) if index >= len(NAMES) else "")
        variant = index if allowed.patterns else 0
        return string(allowed, guess, self._prompt.seed, variant, self._budget)

    def _array(self, shape: Shape, place: _Place, variant: int) -> list[Any]:
        inner = self._inner(shape, place, place.key)
        least, size, contained = self._size(shape, place)
        made: list[Any] = []
        seen: set[bytes] | None = set() if shape.is_unique else None
        for index in range(size):
            # The last items are those of `contains`.
            more = contained[index - size :][:1] if index >= size - len(contained) else []
            try:
                made.append(
                    self._item(shape.item_schema(index, more), inner, variant + index, seen)
                )
            except NoValue as error:
                if index < least or more:
                    raise error.under(index) from error
                break
        return made

    def _size(self, shape: Shape, place: _Place) -> tuple[int, int, list[Any]]:
        """The least size of an array, its size, and the schemas that its last items fit too."""
        least, most = int(shape.bound("minItems", 0)), shape.bound("maxItems")
        if max(least, sum(wanted.least for wanted in shape.contains)) > MOST_VALUES:
            raise NoValue(f"simulated arrays have at most {MOST_VALUES} items")
        contained = [wanted.schema for wanted in shape.contains for _ in range(int(wanted.least))]
        first = max((len(layer.first) for layer in shape.arrays), default=0)
        size = max(least, len(contained), 0 if place.is_small else max(1, first))
        size = size if most is None else min(size, int(most))
        if size < max(least, len(contained)):
            raise NoValue("more items are asked for than maxItems allows")
        return least, size, contained

    def _item(self, schema: Any, inner: _Place, variant: int, seen: set[bytes] | None) -> Any:
        """An item; `seen` are the items from which it must differ, if any."""
        for more in range(MOST_VARIANTS if seen is not None else 1):
            value = self._value(schema, inner, variant + more)
            if seen is None:
                return value
            if (key := checks.canonical(value)) not in seen:
                seen.add(key)
                return value
        raise NoValue("found no further item that differs from the others")


_ANY = Shape()
_ROOT = frozenset({f"{ADDRESS}#"})


def _is_null(option: Any) -> bool:
    return isinstance(option, Mapping) and (
        option.get("type") == "null" or option.get("const", 0) is None
    )


def _is_map(shape: Shape) -> bool:
    """Whether the schema describes properties without naming them."""
    return any(layer.patterns or isinstance(layer.others, Mapping) for layer in shape.objects)


def _likely(shape: Shape) -> str | None:
    """The type that a schema without `type` most likely means; None if it says nothing of it."""
    if shape.objects or shape.required or shape.names or shape.unevaluated:
        return "object"
    if shape.arrays or shape.contains or shape.is_unique:
        return "array"
    if shape.step or any(name.lower().endswith("imum") for name in shape.bounds):
        return "number"
    if any(name.endswith("Properties") for name in shape.bounds):
        return "object"
    return "array" if any(name.endswith("Items") for name in shape.bounds) else None
