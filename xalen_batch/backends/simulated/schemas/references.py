"""The targets of a schema's references: JSON pointers, anchors and ids within one document."""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from xalen_batch.backends.simulated.schemas.errors import InvalidSchema

# The address of the document, in references that are checked outside it.
ADDRESS = "xalen:schema"
# Keywords whose values are data, in which `$ref` is an ordinary key.
_DATA = frozenset({"const", "enum", "default", "examples"})
# Keywords whose values map names of the author's choice to schemas.
_MAPS = frozenset(
    {
        "properties",
        "patternProperties",
        "dependentSchemas",
        "dependencies",
        "$defs",
        "definitions",
    }
)


class References:
    """The references of one document. Immutable, so any thread may call it."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._named: dict[str, Any] = {}
        # The identities of the document's schemas, which live as long as it does.
        self.identities: set[int] = set()
        for part in _parts(root):
            self.identities.add(id(part))
            for keyword in ("$anchor", "$dynamicAnchor"):
                if isinstance(name := part.get(keyword), str):
                    self._named.setdefault(f"#{name}", part)
            for keyword in ("$id", "id"):
                if isinstance(name := part.get(keyword), str):
                    self._named.setdefault(name.removesuffix("#"), part)

    def target(self, reference: str) -> Any:
        """The schema behind a reference. Raises InvalidSchema."""
        reference = reference.removeprefix(ADDRESS)
        if reference in self._named:
            return self._named[reference]
        address, _, pointer = reference.partition("#")
        target = self._named.get(address) if address else self._root
        if target is None or (pointer and not pointer.startswith("/")):
            raise InvalidSchema(f"{reference} is not part of the schema.")
        for name in unquote(pointer).split("/")[1:]:
            target = _child(target, name.replace("~1", "/").replace("~0", "~"), reference)
        return target


def _child(schema: Any, name: str, reference: str) -> Any:
    if isinstance(schema, Mapping) and name in schema:
        return schema[name]
    if isinstance(schema, list) and name.isdecimal() and int(name) < len(schema):
        return schema[int(name)]
    raise InvalidSchema(f"{reference} is not part of the schema.")


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """All schemas of a document, without recursion."""
    waiting: list[tuple[Any, bool]] = [(schema, False)]
    while waiting:
        part, is_map = waiting.pop()
        if isinstance(part, Mapping):
            if not is_map:
                yield part
            waiting += [
                (value, not is_map and name in _MAPS)
                for name, value in part.items()
                if is_map or name not in _DATA
            ]
        elif isinstance(part, list):
            waiting += [(value, False) for value in part]


def addressed(schema: Any, *, is_map: bool = False) -> Any:
    """A copy whose local references name the document, so a part can be checked on its own.

    `is_map`: the keys are names of the author's choice.
    """
    if isinstance(schema, list):
        return [addressed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: addressed(value)
        if is_map
        else value
        if name in _DATA
        else _address_of(value)
        if name in ("$ref", "$dynamicRef")
        else addressed(value, is_map=name in _MAPS)
        for name, value in schema.items()
    }


def _address_of(reference: Any) -> Any:
    is_local = isinstance(reference, str) and reference.startswith("#")
    return f"{ADDRESS}{reference}" if is_local else reference
