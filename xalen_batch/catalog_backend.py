"""A model's backend in the catalog: its servers, and how a request to them looks."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from xalen_batch.errors import ConfigError

BackendKind = Literal["openai", "simulated"]
EXAMPLE = "http://host:8000/v1"
# RFC 9110: the characters of a header's name.
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# Headers that the client sets for each request or connection.
_CLIENTS_OWN = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
    }
)
# What a line asks for, and what an answer must be to be read: not the operator's to replace.
_LINES_OWN = frozenset({"messages", "input", "prompt", "query", "documents", "stream", "n"})


class Table(BaseModel):
    """A table of the catalog."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FromEnvironment(Table):
    """A header's value in an environment variable of the worker, so that no file holds it."""

    env: str


class BackendConfig(Table):
    """The backend of a model in live mode.

    Without `kind`, `base_url` and `base_urls` the model has none, and live batches that name it are
    refused.
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
    base_urls: tuple[str, ...] = Field(
        (), description="Addresses of several servers of this model, in place of base_url."
    )
    api_key_env: str | None = Field(
        None, description="Environment variable that holds the backend's key."
    )
    auth_header: str = Field(
        "Authorization: Bearer",
        description="Header of the key, and the scheme before it: `api-key`, `X-Auth: Token`.",
    )
    # Not in the text of an exception: a value may be a secret.
    headers: Mapping[str, str | FromEnvironment] = Field(
        {}, repr=False, description="Headers of each request: text, or { env = VARIABLE }."
    )
    extra_body: Mapping[str, Any] = Field(
        {}, repr=False, description="Fields that each request's body gets, such as priority."
    )
    ca_file: Path | None = Field(
        None, description="PEM file of a certificate authority that is trusted besides the usual."
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
    live_reserve: int = Field(
        0, ge=0, description="Requests in flight that are kept free for live calls."
    )
    max_inputs: int = Field(
        32,
        gt=0,
        description=(
            "Most inputs of embeddings in a request that combines lines; 1: each line is a request."
        ),
    )
    requests_per_minute: int | None = Field(
        None, gt=0, description="Most requests per minute, over all worker processes."
    )
    tokens_per_minute: int | None = Field(
        None,
        gt=0,
        description="Most tokens per minute, read and written, over all worker processes.",
    )

    def __hash__(self) -> int:
        # Models are keys of caches, and tables have no hash.
        return hash((self.kind, self.urls, self.model))

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses of the servers, without a slash at the end."""
        given = self.base_urls or ((self.base_url,) if self.base_url else ())
        return tuple(url.rstrip("/") for url in given)

    @property
    def auth_name(self) -> str:
        """The name of the header that carries the key."""
        return self.auth_header.partition(":")[0].strip()

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that requests need: of the key, and of headers."""
        of_headers = [value.env for value in self.headers.values() if not isinstance(value, str)]
        return tuple([self.api_key_env] if self.api_key_env else []) + tuple(of_headers)

    def request_headers(self) -> dict[str, str]:
        """The headers of `headers` and of the key, in lower case; without those that are not set.

        Raises ConfigError for a variable that no header may carry.
        """
        found = {}
        for name, value in self.headers.items():
            text = value if isinstance(value, str) else _variable(value.env)
            if text:
                found[name.lower()] = text
        key = _variable(self.api_key_env) if self.api_key_env else ""
        if key:
            scheme = self.auth_header.partition(":")[2].strip()
            found[self.auth_name.lower()] = f"{scheme} {key}".strip()
        return found

    def ca_certificates(self) -> list[bytes]:
        """The certificates of `ca_file`. Raises ConfigError if it has none or cannot be read."""
        if self.ca_file is None:
            return []
        try:
            found = _CERTIFICATE.findall(self.ca_file.read_bytes())
        except OSError as error:
            raise ConfigError(
                f"The catalog's ca_file {self.ca_file} cannot be read: {error.strerror}."
            ) from error
        if not found:
            raise ConfigError(f"The catalog's ca_file {self.ca_file} holds no PEM certificate.")
        return found

    @model_validator(mode="before")
    @classmethod
    def _kind_of_address(cls, given: Any) -> Any:
        if (
            isinstance(given, dict)
            and (given.get("base_url") or given.get("base_urls"))
            and given.get("kind") is None
        ):
            return {**given, "kind": "openai"}
        return given

    @field_validator("base_urls")
    @classmethod
    def _distinct(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        seen: set[str] = set()
        for url in urls:
            if not is_address(url):
                raise ValueError(f"{shown(url)} is no address. It looks like {EXAMPLE}.")
            name = shown(url).rstrip("/")
            if name in seen:
                raise ValueError(f"{name} stands here twice. Name each server once.")
            seen.add(name)
        return urls

    @field_validator("auth_header")
    @classmethod
    def _header_and_scheme(cls, value: str) -> str:
        name, colon, scheme = (part.strip() for part in value.partition(":"))
        if not _TOKEN.fullmatch(name) or (colon and not _is_carried(scheme)):
            raise ValueError(
                f"{value!r} is not the name of a header, or a name and a scheme. Examples:"
                " 'api-key', 'Authorization: Token'."
            )
        _refuse_clients_own(name)
        return value

    @field_validator("headers", mode="before")
    @classmethod
    def _carried(cls, given: Any) -> Any:
        """Check the names and values; an error names the header, and never its value."""
        if not isinstance(given, dict):
            return given
        seen = set()
        for name, value in given.items():
            if not _TOKEN.fullmatch(name):
                raise ValueError(f"{name!r} has characters that no header's name may have.")
            if name.lower() in seen:
                raise ValueError(f"{name} stands here twice; upper and lower case are the same.")
            seen.add(name.lower())
            _refuse_clients_own(name)
            if name.lower() == "authorization":
                raise ValueError(
                    "authorization carries the key. Name the key's variable in api_key_env, and"
                    " another scheme in auth_header."
                )
            if not (_is_variable(value) or (isinstance(value, str) and _is_carried(value))):
                raise ValueError(
                    f"the value of {name} is neither printable ASCII text nor {{ env = VARIABLE }}."
                )
        return given

    @field_validator("extra_body")
    @classmethod
    def _sendable(cls, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        for name, value in fields.items():
            if name == "model":
                raise ValueError("model is set by the field model of this table.")
            if name in _LINES_OWN:
                raise ValueError(f"{name} is the line's own, and cannot be set for all lines.")
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError):
                raise ValueError(
                    f"{name} has a value that JSON lacks, such as a date or nan."
                ) from None
        return fields

    @model_validator(mode="after")
    def _one_meaning(self) -> "BackendConfig":
        if self.base_url == "":
            raise ValueError(
                f"base_url is empty. Set it to the server's address, such as {EXAMPLE}, or leave it"
                " out."
            )
        if self.base_url and self.base_urls:
            raise ValueError(
                "base_url and base_urls both name servers. Put every address into base_urls; where"
                " another file sets base_urls, base_urls = [] removes them."
            )
        if self.kind == "simulated" and self.urls:
            named = "base_urls names some" if self.base_urls else "base_url names one"
            raise ValueError(
                f'kind = "simulated" has no server, and {named}. Remove one of the two.'
            )
        if self.kind == "openai" and not self.urls:
            raise ValueError(
                f'kind = "openai" needs the base_url of its server, such as {EXAMPLE}.'
            )
        if "auth_header" in self.model_fields_set and not self.api_key_env:
            raise ValueError(
                "auth_header has no key to carry. Name the key's variable in api_key_env."
            )
        if self.auth_name.lower() in {name.lower() for name in self.headers}:
            raise ValueError(f"headers and auth_header both set {self.auth_name}.")
        if self.ca_file is not None:
            if not self.ca_file.is_absolute():
                raise ValueError(f"ca_file is {self.ca_file}. It must be an absolute path.")
            if plain := [url for url in self.urls if not url.startswith("https://")]:
                raise ValueError(
                    f"ca_file is for https, and {shown(plain[0])} has no TLS. Leave it out, or use"
                    " https."
                )
        return self


def is_address(url: str) -> bool:
    """Whether this is an address of a server over HTTP."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def shown(url: str) -> str:
    """The address as people and logs may see it: without a user, a password and a query."""
    try:
        parts = urlsplit(url)
        return parts._replace(
            netloc=parts.netloc.rpartition("@")[2], query="", fragment=""
        ).geturl()
    except ValueError:
        return "an address that cannot be read"


def _variable(name: str) -> str:
    value = os.environ.get(name, "").strip()
    if not _is_carried(value):
        raise ConfigError(
            f"The key in {name} has characters that no HTTP header may carry. Set it to the key"
            " alone."
        )
    return value


def _is_variable(value: object) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"env"}
        and isinstance(value["env"], str)
        and _VARIABLE.fullmatch(value["env"]) is not None
    )


def _is_carried(value: str) -> bool:
    return value.isascii() and value.isprintable() and value == value.strip()


def _refuse_clients_own(name: str) -> None:
    if name.lower() in _CLIENTS_OWN:
        raise ValueError(f"{name} is set by the client for each request. Leave it out.")
