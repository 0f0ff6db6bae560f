"""The model catalog: the models, with their prices, endpoints and backends."""

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from decimal import Decimal
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from xalen_batch import config_errors, log
from xalen_batch.config import Settings, settings
from xalen_batch.endpoints.names import ENDPOINTS, RERANK, Endpoint
from xalen_batch.endpoints.window import Window
from xalen_batch.errors import ConfigError

logger = log.get(__name__)

BackendKind = Literal["openai", "simulated"]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ListPrice(_Table):
    """USD per million tokens. None: the component has no price, which does not mean free."""

    input: Decimal | None = Field(None, ge=0)
    output: Decimal | None = Field(None, ge=0)


class BackendConfig(_Table):
    """The backend of a model in live mode.

    Without `kind` and `base_url` the model has none, and live batches that name it are refused.
    """

    kind: BackendKind | None = Field(
        None,
        description=(
            "`openai`, which base_url means by itself: any OpenAI-compatible server. `simulated`:"
            " made-up answers."
        ),
    )
    base_url: str | None = Field(
        None, description="Address of the model server, such as http://host:8000/v1."
    )
    api_key_env: str | None = Field(
        None, description="Environment variable that holds the backend's key."
    )
    model: str | None = Field(
        None, description="The model's name at the backend; the catalog's id if unset."
    )
    has_responses: bool = Field(
        False,
        description=(
            "Whether the server has /v1/responses. If not, responses are sent as chat completions."
        ),
    )
    rerank_api: Literal["jina", "cohere", "tei"] = Field(
        "jina", description="Shape of the backend's rerank endpoint."
    )
    max_in_flight: int = Field(
        64, gt=0, description="Most requests in flight at the backend, over all workers."
    )
    requests_per_minute: int | None = Field(
        None, gt=0, description="Most requests per minute, over all worker processes."
    )
    tokens_per_minute: int | None = Field(
        None,
        gt=0,
        description="Most tokens per minute, read and written, over all worker processes.",
    )

    @model_validator(mode="before")
    @classmethod
    def _kind_of_address(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("base_url") and given.get("kind") is None:
            return {**given, "kind": "openai"}
        return given

    @model_validator(mode="after")
    def _one_meaning(self) -> "BackendConfig":
        if self.base_url == "":
            raise ValueError(
                "base_url is empty. Set it to the server's address, such as http://host:8000/v1, or"
                " leave it out."
            )
        if self.kind == "simulated" and self.base_url:
            raise ValueError(
                'kind = "simulated" has no server, and base_url names one. Remove one of the two.'
            )
        if self.kind == "openai" and not self.base_url:
            raise ValueError(
                'kind = "openai" needs the base_url of its server, such as http://host:8000/v1.'
            )
        return self


# Descriptive fields of a model, which no code reads.
_DESCRIPTIVE = {"name", "owned_by", "category", "parameters"}


class Model(_Table):
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

    @property
    def is_reranker(self) -> bool:
        return RERANK in self.endpoints

    @property
    def window(self) -> Window:
        return Window(self.id, self.owned_by, self.context_window)


class _Document(_Table):
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
    built_in = tomllib.loads(
        resources.files("xalen_batch").joinpath("catalog.toml").read_text("utf-8")
    )
    if path is None:
        return parse(built_in)
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"XALEN_CATALOG names {path}, which cannot be read: {error}") from error
    return parse(built_in, document)


def unknown_settings() -> dict[str, str | None]:
    """Environment variables with our prefix that nothing reads, each with the most similar name."""
    try:
        keys = {model.backend.api_key_env for model in models().values()} - {None}
    except ConfigError:
        # The command that needs the catalog reports the error.
        keys = set()
    return config_errors.unknown_settings(os.environ, [*Settings.model_fields, *map(str, keys)])


def warn_of_unknown_settings() -> None:
    """Log unknown settings, once at the start of a process. A misspelt setting has no effect."""
    for name, meant in unknown_settings().items():
        logger.warning("setting.unknown", name=name, meant=meant)


def source() -> str:
    """The files of the catalog in force, in words."""
    path = settings().catalog
    return (
        "the built-in catalog (XALEN_CATALOG names no file)"
        if path is None
        else f"{path} over the built-in catalog"
    )


@cache
def fingerprint() -> str:
    """A hash of all models without their descriptive fields, to compare processes by."""
    found = {
        id: model.model_dump(mode="json", exclude=_DESCRIPTIVE)
        for id, model in sorted(models().items())
    }
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


@cache
def models() -> dict[str, Model]:
    """The catalog in force in this process."""
    return read(settings().catalog)
