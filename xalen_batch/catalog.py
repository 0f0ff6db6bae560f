"""The model catalog: the models, with their prices, endpoints and backends."""

import hashlib
import json
import os
import threading
import time
import tomllib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from decimal import Decimal
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from xalen_batch import config_errors, log
from xalen_batch.catalog_backend import BackendConfig, BackendKind, Table
from xalen_batch.config import Settings, settings
from xalen_batch.endpoints.names import ENDPOINTS, RERANK, Endpoint
from xalen_batch.endpoints.window import Window
from xalen_batch.errors import ConfigError

logger = log.get(__name__)


class ListPrice(Table):
    """USD per million tokens. None: the component has no price, which does not mean free.

    `cached_input`: input that the backend reports as cached; None: it costs what input costs.
    """

    input: Decimal | None = Field(None, ge=0)
    cached_input: Decimal | None = Field(None, ge=0)
    output: Decimal | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _cached_beside_input(self) -> "ListPrice":
        if self.cached_input is not None and self.input is None:
            raise ValueError(
                "cached_input is a part of the input, which has no price. Give it one, such as"
                ' input = "0.02", or leave out cached_input.'
            )
        return self


# Descriptive fields of a model, which no code reads.
_DESCRIPTIVE = {"name", "owned_by", "category", "parameters"}


class Model(Table):
    """One entry of the catalog; docs/catalog.md has the meaning of every field."""

    id: str
    name: str
    owned_by: str
    category: str
    parameters: str
    context_window: int = Field(gt=0)
    latency_ms: int = Field(100, ge=0)
    endpoints: tuple[Endpoint, ...]
    price: ListPrice
    backend: BackendConfig = BackendConfig()

    @field_validator("endpoints", mode="after")
    @classmethod
    def _any_endpoint(cls, endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        if not endpoints:
            raise ValueError(
                f"[] names no endpoint. List one or more of {', '.join(map(repr, ENDPOINTS))}."
            )
        return endpoints

    def kind_in(self, livemode: bool) -> BackendKind | None:
        """The kind of backend in a mode: always simulated in test mode; None: it has no backend."""
        return self.backend.kind if livemode else "simulated"

    def runs_as(self, other: "Model") -> bool:
        """Whether a request is answered alike: all fields are equal but prices and descriptions."""
        ignored = _DESCRIPTIVE | {"price"}
        return self is other or (
            self.model_dump(exclude=ignored) == other.model_dump(exclude=ignored)
        )

    @property
    def is_reranker(self) -> bool:
        return RERANK in self.endpoints

    @property
    def window(self) -> Window:
        return Window(self.id, self.owned_by, self.context_window)


class _Document(Table):
    """A catalog file: models by id. Other fields are errors, since they would have no effect."""

    models: dict[str, dict[str, Any]] = {}


def parse(*documents: Mapping[str, Any]) -> dict[str, Model]:
    """The models of catalog documents by id; later documents override earlier ones, field by field.

    Raises ConfigError for an invalid document.
    """
    merged: dict[str, Any] = {}
    for document in documents:
        _merge(merged, _tables(document))
    return {id: _model(id, table) for id, table in merged.items()}


def _tables(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The fields that a document sets, by model id. Raises ConfigError."""
    try:
        return _Document.model_validate(document).models
    except ValidationError as error:
        first = error.errors()[0]
        words = config_errors.of_field(first, _Document)
        raise _invalid(
            first["loc"],
            f"{words}{'' if words[-1] in '.?' else '.'} Each model is a table, [models.ID].",
        ) from error


def _model(id: str, table: Mapping[str, Any]) -> Model:
    if not id:
        raise _invalid(("models",), "a model's id is empty. Name it as requests do, [models.ID].")
    if "id" in table:
        raise _invalid(
            ("models", id, "id"),
            f"there is no such field. The id is the table's name, [models.{id}].",
        )
    try:
        return Model(id=id, **table)
    except ValidationError as error:
        first = error.errors()[0]
        raise _invalid(
            ("models", id, *first["loc"]), config_errors.of_field(first, _shape(first["loc"]))
        ) from error


def _invalid(path: tuple[int | str, ...], words: str) -> ConfigError:
    return ConfigError(f"The model catalog is not valid: {'.'.join(map(str, path))}: {words}")


def _shape(path: tuple[int | str, ...]) -> type[BaseModel]:
    """The table of a field, given the field's path in a model."""
    tables: dict[str, type[BaseModel]] = {"price": ListPrice, "backend": BackendConfig}
    return tables.get(str(path[0]), Model) if len(path) > 1 else Model


def _merge(into: dict[str, Any], extra: Mapping[str, Any]) -> None:
    for name, value in extra.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = deepcopy(value)


def read(path: Path | None) -> dict[str, Model]:
    """The built-in catalog, overridden by the operator's file. Raises ConfigError."""
    if path is None:
        return over_built_in()
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        named = ", which XALEN_CATALOG names," if path == settings().catalog else ""
        raise ConfigError(f"The catalog file {path}{named} cannot be read: {error}") from error
    return over_built_in(document)


def over_built_in(*documents: Mapping[str, Any]) -> dict[str, Model]:
    """The built-in catalog, overridden by documents. Raises ConfigError."""
    built_in = resources.files("xalen_batch").joinpath("catalog.toml").read_text("utf-8")
    return parse(tomllib.loads(built_in), *documents)


def file() -> Path:
    """The operator's file: XALEN_CATALOG, or `catalog.toml` in the data folder if it exists."""
    return settings().catalog or settings().data_dir.absolute() / "catalog.toml"


def unknown_settings() -> dict[str, str | None]:
    """Environment variables with our prefix that nothing reads, each with the most similar name."""
    try:
        keys = {name for model in models().values() for name in model.backend.variables}
    except ConfigError:
        # The command that needs the catalog reports the error.
        keys = set()
    return config_errors.unknown_settings(os.environ, [*Settings.model_fields, *keys])


def warn_of_unknown_settings() -> None:
    """Log unknown settings, once at the start of a process. A misspelt setting has no effect."""
    for name, meant in unknown_settings().items():
        logger.warning("setting.unknown", name=name, meant=meant)


def source() -> str:
    """The files of the catalog in force, in words."""
    path = _in_force().path
    if path is None:
        return "the built-in catalog (XALEN_CATALOG names no file)"
    return f"{path} over the built-in catalog"


def models() -> dict[str, Model]:
    """The catalog in force in this process: another object after each change of the file."""
    return _in_force().look().models


def knowing(ids: Iterable[str]) -> dict[str, Model]:
    """As `models`; if one of these is missing, the file is read at once if it has changed.

    Another process may have read a change a second or two before this one.
    """
    found = _in_force()
    if not found.look().models.keys() >= set(ids):
        found.look_at_once()
    return found.models


def fingerprint() -> str:
    """A hash of all models without their descriptive fields, to compare processes by."""
    return _in_force().look().fingerprint


def has_broken_file() -> bool:
    """Whether the file changed into one that cannot be used; the catalog before it is in force."""
    return _in_force().look().is_broken


def reload() -> None:
    """Read the file anew: for a process that has just written it. Other processes follow."""
    _in_force.cache_clear()


# Seconds between two looks at the file.
LOOK_EVERY = 1.0
# A change is read if it is this many seconds old or if two looks find the same file, so that a file
# that is being written is not read.
SETTLED_AFTER = 1.0
_Stamp = tuple[int, int, int] | None


class _InForce:
    """The catalog of a process and the operator's file, which is watched. Any thread."""

    def __init__(self) -> None:
        self._file = file()
        self._lock = threading.Lock()
        # The stamps of the file when it was read, and at the last look.
        self._read = self._seen = self._stamp()
        self._next_look = time.monotonic() + LOOK_EVERY
        self.is_broken = False
        self._take(self._now(self._read))

    def look(self) -> "_InForce":
        """Read the file again if it has changed; at most one thread looks, the others go on."""
        if time.monotonic() >= self._next_look and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self

    def look_at_once(self) -> None:
        """Read the file if it has changed, however lately."""
        with self._lock:
            self._seen = self._stamp()
            self._look()

    @property
    def path(self) -> Path | None:
        """The path of the catalog file in force, or None."""
        return None if self._read is None and settings().catalog is None else self._file

    def _look(self) -> None:
        self._next_look = time.monotonic() + LOOK_EVERY
        stamp, before = self._stamp(), self._seen
        self._seen = stamp
        is_old = stamp is not None and time.time() - stamp[2] / 1e9 > SETTLED_AFTER
        if stamp == self._read or (stamp != before and not is_old):
            return
        try:
            found = self._now(stamp)
        except Exception as error:
            if self._stamp() != stamp:
                return
            self._read, self.is_broken = stamp, True
            reason = str(error) if isinstance(error, ConfigError) else type(error).__name__
            logger.error("catalog.broken", file=str(self._file), reason=reason)
            return
        if self._stamp() != stamp:
            # It changed while it was read.
            return
        self._read, self.is_broken = stamp, False
        if found != self.models:
            before_it = self.models
            self._take(found)
            changed = [id for id in found if found[id] != before_it.get(id)]
            removed = sorted(before_it.keys() - found.keys())
            logger.info("catalog.changed", file=str(self._file), models=changed, removed=removed)

    def _now(self, stamp: _Stamp) -> dict[str, Model]:
        has_file = stamp is not None or settings().catalog is not None
        return read(self._file if has_file else None)

    def _take(self, models: dict[str, Model]) -> None:
        found = {
            id: model.model_dump(mode="json", exclude=_DESCRIPTIVE, exclude_defaults=True)
            for id, model in sorted(models.items())
        }
        text = json.dumps(found, sort_keys=True)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.models = models

    def _stamp(self) -> _Stamp:
        """The stamp of the file's version: it changes with the file. None if the file is absent."""
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns


@cache
def _in_force() -> _InForce:
    return _InForce()
