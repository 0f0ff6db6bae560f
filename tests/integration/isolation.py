"""Every request with which a caller could reach another account's objects, generated from the API's
description (tests/integration/api/test_isolation.py).

A route that this file cannot call raises Unknown, so a new one is either in the matrix or fails the
test. `python -m tests.integration.isolation` prints how large the matrix is.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any
from urllib.parse import quote, urlencode

from tests import factories
from tests.described import description
from tests.integration.conftest import multipart
from xalen_batch.endpoints.names import CHAT

DESCRIPTION: dict[str, Any] = description()
# Routes that need no key. All others must need one.
PUBLIC = {
    "/",
    "/v1",
    "/livez",
    "/readyz",
    "/docs",
    "/docs/assets",
    "/openapi.json",
    "/schemas/batch-line.json",
    "/schemas/result-line.json",
    # With the operator's token; without it they are not there.
    "/metrics",
    "/v1/demand",
}
# Values for the required fields of a body, by the field's name.
VALUES: dict[str, Any] = {
    "endpoint": CHAT,
    "model": factories.CHAT_MODEL,
    "completion_window": "24h",
    "cron": "0 3 * * *",
    "name": "mine",
    "from": "2026-11-01",
    "to": "2026-11-02",
    **factories.chat_line("mine"),
    "requests": [
        {
            "custom_id": "mine",
            "params": {"max_tokens": 9} | factories.chat_line("mine")["body"],
        }
    ],
    "purpose": b"batch",
    "file": factories.jsonl([factories.chat_line("mine")]),
    "bytes": 5,
    "filename": "mine.jsonl",
    "mime_type": "text/jsonl",
    "data": b"mine",
    "event_types": ["batch.completed"],
    "event_type": "batch.completed",
    # That of the neighbour's upload.
    "part_ids": [f"part_{1:032x}"],
}
# Fields that the API's description does not require: alternatives, and those of a live call.
ONE_OF: dict[str, dict[str, Any]] = {
    "POST /v1/schedules": {"inbox": {}},
    "POST /v1/batches": {"requests": [factories.chat_line("mine")]},
    # In JSON; a form has bytes.
    "POST /v1/uploads": {"purpose": "batch"},
    "POST /v1/webhooks": {"url": "https://example.com/mine"},
    "POST /v1/webhook_endpoints": {"url": "https://example.com/mine"},
    "POST /v1/chat/completions": factories.chat_line("mine")["body"],
    "POST /v1/responses": {"input": "Hello"},
    "POST /v1/completions": {"prompt": "Hello"},
    "POST /v1/embeddings": {"model": "bge-m3", "input": "Hello"},
    "POST /v1/rerank": factories.rerank_line("mine")["body"],
}
# Valid values for the path parameters that are no ids of an account's objects.
# `custom_id`: the neighbour's, which other accounts may use as well.
OTHER_PARAMETERS = {
    "month": "2026-11",
    "model_id": factories.CHAT_MODEL,
    "custom_id": "canary-7f3a9c",
}
IDEMPOTENCY_KEY = "neighbours-key"


class Unknown(Exception):
    """A route that the matrix cannot call. Add the missing value above."""


class Kind(StrEnum):
    """The kinds of the neighbour's ids."""

    FILE = "file"
    UNUSED_FILE = "file that nothing reads"
    TEMPLATE = "template"
    OUTPUT = "output file"
    ERRORS = "error file"
    BATCH = "batch"
    RESPONSE = "response"
    MESSAGE_BATCH = "message batch"
    RUNNING_MESSAGE_BATCH = "running message batch"
    RUNNING = "running batch"
    INVOICE = "invoice"
    CREDIT_NOTE = "credit note"
    SCHEDULE = "schedule"
    INBOX = "schedule with an inbox"
    RUN = "run"
    KEY = "key"
    UPLOAD = "upload"
    OTHER_UPLOAD = "upload without a part"
    WEBHOOK = "webhook"
    EVENT = "event"
    ACCOUNT = "account"


class Actor(StrEnum):
    """The caller of a request."""

    OTHER_ACCOUNT = "other account"
    OTHER_MODE = "other mode"
    REVOKED = "revoked key"
    EXPIRED = "expired key"
    NO_KEY = "no key"
    WRONG_KEY = "wrong key"
    WRONG_SCOPE = "wrong scope"

    @property
    def is_valid(self) -> bool:
        """Whether the caller's key is valid, so that only the id is another owner's."""
        return self in (Actor.OTHER_ACCOUNT, Actor.OTHER_MODE)


@dataclass(frozen=True)
class Request:
    """`where`: the place of an id in it, such as `path.batch_id`; None where it has none."""

    method: str
    path: str
    where: str | None = None
    parameters: tuple[tuple[str, str], ...] = ()
    body: Any = None
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def route(self) -> str:
        return f"{self.method} {self.path}"

    def with_id(self, id: str) -> "Request":
        """The same request with this id at `where`."""
        place, _, name = (self.where or "").partition(".")
        match place:
            case "path" | "query":
                return replace(self, parameters=(*self.parameters, (name, id)))
            case "body":
                others = {
                    key: value
                    for key, value in self.body.items()
                    if key not in ONE_OF.get(self.route, {})
                }
                return replace(self, body={**others, name: id})
        return self

    def encoded(self) -> tuple[str, str, bytes | None, dict[str, str]]:
        """Method, address, body and headers."""
        given = dict(self.parameters)
        address = re.sub(r"{(\w+)}", lambda found: quote(given.pop(found[1]), safe=""), self.path)
        query = f"?{urlencode(given)}" if given else ""
        headers = dict(self.headers)
        body: bytes | None = None
        if isinstance(self.body, tuple):
            headers["content-type"], body = multipart(*self.body)
        elif isinstance(self.body, bytes):
            headers["content-type"], body = "application/json", self.body
        elif self.body is not None:
            headers["content-type"], body = "application/json", json.dumps(self.body).encode()
        return self.method, address + query, body, headers


@dataclass(frozen=True)
class Case:
    actor: Actor
    request: Request
    # The kind of the neighbour's id in the request; None: it has none.
    kind: Kind | None


def operations() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(method, path, description) of every route that asks for a key."""
    for path, methods in DESCRIPTION["paths"].items():
        if path not in PUBLIC:
            yield from ((method.upper(), path, operation) for method, operation in methods.items())


def requests(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[Request]:
    """A route's requests: one for each place that holds an id, and those that hold none of the
    neighbour's. Of several parameters in the path, one has the id; the others are filled later.
    """
    parameters = operation.get("parameters", [])
    in_path = [parameter["name"] for parameter in parameters if parameter["in"] == "path"]
    body, fields = _body(method, path, operation)
    plain = Request(method, path, body=body)
    for name in in_path:
        yield replace(plain, where=f"path.{name}")
        if name in OTHER_PARAMETERS:
            yield replace(plain, parameters=((name, OTHER_PARAMETERS[name]),))
        elif not name.endswith("_id"):
            raise Unknown(f"{method} {path}: what is {name}?")
    if in_path:
        return
    yield plain
    for parameter in parameters:
        if parameter["in"] == "query" and (
            parameter["name"] == "after" or parameter["name"].endswith("_id")
        ):
            yield replace(plain, where=f"query.{parameter['name']}")
        if parameter["in"] == "query" and parameter.get("required"):
            raise Unknown(f"{method} {path}: what is {parameter['name']}?")
        if parameter["in"] == "header":
            if parameter["name"] != "Idempotency-Key":
                raise Unknown(f"{method} {path}: what is {parameter['name']}?")
            yield replace(plain, headers=(("idempotency-key", IDEMPOTENCY_KEY),))
    yield from (
        replace(plain, where=f"body.{field}")
        for field in fields
        if field.endswith("_id") and field != "custom_id"
    )


def within(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[Request]:
    """Requests about the caller's own schedule or batch (`{…}` is filled later), with ids of the
    neighbour in the body or query.
    """
    parameters = operation.get("parameters", [])
    if not any(parameter["in"] == "path" for parameter in parameters):
        return
    body, fields = _body(method, path, operation)
    plain = Request(method, path, body=body)
    for parameter in parameters:
        if parameter["in"] == "query" and parameter["name"] == "after":
            yield replace(plain, where="query.after")
        if parameter["in"] == "header":
            yield replace(plain, headers=(("idempotency-key", IDEMPOTENCY_KEY),))
    yield from (
        replace(plain, where=f"body.{field}")
        for field in fields
        if field.endswith("_id") and field != "custom_id"
    )


def cases(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[Case]:
    for request in requests(method, path, operation):
        for actor in Actor:
            yield from (Case(actor, request, kind) for kind in (Kind if request.where else [None]))
        if request.body is not None and request.where is None:
            # A caller without the right gets its 401 or 403 before any error of the request.
            yield from (
                Case(actor, replace(request, body=b"{"), None)
                for actor in Actor
                if not actor.is_valid
            )
    for request in within(method, path, operation):
        yield from (
            Case(actor, request, kind)
            for actor in Actor
            if actor.is_valid
            for kind in (Kind if request.where else [None])
        )


def _body(method: str, path: str, operation: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """A valid body, and the names of all fields that it could have."""
    content = operation.get("requestBody", {}).get("content", {})
    if not content:
        return None, []
    if "multipart/form-data" in content:
        required = content["multipart/form-data"]["schema"]["required"]
        return (
            tuple(
                (name, "mine.jsonl" if name == "file" else None, _value(method, path, name))
                for name in required
            ),
            [],
        )
    schema = _resolved(content["application/json"]["schema"])
    body = {name: _value(method, path, name) for name in schema.get("required", [])}
    return body | ONE_OF.get(f"{method} {path}", {}), list(schema.get("properties", {}))


def _resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if "anyOf" in schema:
        return _resolved(schema["anyOf"][0])
    if "$ref" in schema:
        found: Mapping[str, Any] = DESCRIPTION["components"]["schemas"][
            schema["$ref"].rpartition("/")[2]
        ]
        return found
    return schema


def _value(method: str, path: str, name: str) -> Any:
    if name.endswith("_id") and name != "custom_id":
        return f"file-{'0' * 32}"
    if name not in VALUES:
        raise Unknown(f"{method} {path}: what is a right value of {name}?")
    return VALUES[name]


if __name__ == "__main__":
    routes = list(operations())
    actors = Counter(case.actor for route in routes for case in cases(*route))
    print(f"{len(routes)} routes, {len(Kind)} kinds of ids, {actors.total()} requests")  # noqa: T201
    for actor, count in actors.items():
        print(f"  {actor}: {count}")  # noqa: T201
