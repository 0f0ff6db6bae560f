"""No caller sees or changes the objects of another account or mode, and a key that is revoked,
expired or without the scope gets nothing.

The requests are generated from the API's description: every route, with every kind of id in every
parameter that takes one, by every caller who must not (tests/integration/isolation.py).
"""

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from uuid import UUID

import psycopg.errors
import pytest
import sqlalchemy.exc
from fastapi import APIRouter
from fastapi.routing import APIRoute
from sqlalchemy import text

from tests.integration import isolation, neighbours
from tests.integration.isolation import (
    IDEMPOTENCY_KEY,
    OTHER_PARAMETERS,
    Actor,
    Case,
    Kind,
    Request,
)
from tests.integration.neighbours import Answer, Client, Neighbour
from xalen_batch import api as rooms
from xalen_batch import db
from xalen_batch.accounts.accounts import Scope
from xalen_batch.api import app
from xalen_batch.api.live.ledger import recorder
from xalen_batch.webhooks import samples

ROUTES = list(isolation.operations())
REFUSED = {
    Actor.REVOKED: 401,
    Actor.EXPIRED: 401,
    Actor.NO_KEY: 401,
    Actor.WRONG_KEY: 401,
    Actor.WRONG_SCOPE: 403,
}


@pytest.fixture
def neighbour(
    database: str,
    valkey: object,
    configure: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> Neighbour:
    configure(failed_auth_per_minute=1_000_000)
    # As if the webhook's receiver answered.
    monkeypatch.setattr(samples, "send", lambda endpoint, type: 200)
    return neighbours.move_in()


@pytest.fixture
def client(port: int) -> Iterator[Client]:
    yield from neighbours.connect(port)


def test_the_matrix_has_every_route_there_is() -> None:
    described = {(method, path) for method, path, _ in ROUTES}
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(rooms.__path__, f"{rooms.__name__}.")
    ]
    routers = {
        id(router): router
        for module in modules
        for router in vars(module).values()
        if isinstance(router, APIRouter)
    }
    routes = [
        route
        for router in routers.values()
        for route in router.routes
        if isinstance(route, APIRoute)
    ]
    defined = {
        (method, route.path.replace(":path}", "}")) for route in routes for method in route.methods
    }
    assert {(method, path) for method, path in defined if path not in isolation.PUBLIC} == described
    others = {getattr(route, "path", None) for route in app.create_app().routes} - {None}
    assert others <= isolation.PUBLIC | {path for _, path in described}
    assert all(list(isolation.cases(*route)) for route in ROUTES)


def test_a_route_that_cannot_be_called_is_noticed() -> None:
    required = {
        "requestBody": {
            "content": {
                "application/json": {
                    "schema": {"required": ["colour"], "properties": {"colour": {}}}
                }
            }
        }
    }
    unknown: list[Mapping[str, Any]] = [
        required,
        {"parameters": [{"in": "path", "name": "colour"}]},
        {"parameters": [{"in": "query", "name": "colour", "required": True}]},
        {"parameters": [{"in": "header", "name": "colour"}]},
    ]
    for operation in unknown:
        with pytest.raises(isolation.Unknown, match="colour"):
            list(isolation.cases("POST", "/v1/paint", operation))


@pytest.mark.parametrize(
    ("method", "path", "operation"), ROUTES, ids=[f"{method} {path}" for method, path, _ in ROUTES]
)
def test_a_route_shows_and_changes_nothing_of_a_neighbours(
    neighbour: Neighbour, client: Client, method: str, path: str, operation: dict[str, Any]
) -> None:
    scope = neighbours.scope_of(neighbour, client, method, path, operation)
    # A live call is recorded behind its answer.
    recorder.settle()
    before, of_neighbour = neighbours.rows(), neighbour.rows()
    cases = list(isolation.cases(method, path, operation))
    assert (
        _problems(neighbour, client, [case for case in cases if not case.actor.is_valid], scope)
        == []
    )
    assert neighbours.rows() == before
    assert (
        _problems(neighbour, client, [case for case in cases if case.actor.is_valid], scope) == []
    )
    recorder.settle()
    # The callers may have created or changed objects of their own.
    assert of_neighbour - neighbour.rows() == set()
    # A control that the requests are right: those of the owner succeed.
    assert 200 in _asked_by_their_owner(neighbour, client, method, path, operation)


def _problems(neighbour: Neighbour, client: Client, cases: list[Case], scope: Scope) -> list[str]:
    found = ((case, _problem(neighbour, client, case, scope)) for case in cases)
    return [
        f"{case.actor}, {case.kind} in {case.request.where}: {problem}"
        for case, problem in found
        if problem
    ]


def _problem(neighbour: Neighbour, client: Client, case: Case, scope: Scope) -> str | None:
    """The error in the answer to a request, or None."""
    id = None if case.kind is None else neighbour.ids[case.kind]
    request = case.request
    if case.actor.is_valid:
        own = neighbour.own[case.actor].items()
        others = {name: value for name, value in own if request.where != f"path.{name}"}
        request = neighbours.filled(request, others)
    asked = request if id is None else request.with_id(id)
    if not case.actor.is_valid:
        asked = neighbours.filled(asked, neighbour.own[Actor.OTHER_ACCOUNT])
    answer = client.ask(asked, neighbour.secret_of(case.actor, scope))
    leaked = neighbour.leaks(answer, case.actor, id)
    if answer.status == 404:
        # It names what it did not find: a parameter of the request.
        leaked = [canary for canary in leaked if canary not in dict(asked.parameters).values()]
    if leaked:
        return f"{answer.status} shows {leaked}"
    if not case.actor.is_valid:
        return (
            None if answer.status == REFUSED[case.actor] else f"{answer.status} {answer.body[:200]}"
        )
    return _problem_of_valid_key(neighbour, client, case, request, answer, id)


def _problem_of_valid_key(
    neighbour: Neighbour,
    client: Client,
    case: Case,
    request: Request,
    answer: Answer,
    id: str | None,
) -> str | None:
    if answer.status >= 500 or answer.status in (401, 403):
        return f"{answer.status} {answer.body[:200]}"
    if id is None:
        return "a replay" if "idempotent-replayed" in answer.headers else None
    if (
        (request.where or "").startswith("path.")
        and "{month}" not in request.path
        and answer.status != 404
    ):
        return f"{answer.status} {answer.body[:200]}"
    if answer.status == 200 and (request.where or "").startswith("query."):
        return None
    if answer.status not in (400, 404):
        return f"{answer.status} {answer.body[:200]}"
    if "{month}" in request.path:
        # No id is a month, whosever it is.
        return None
    # The answer for the neighbour's id must equal that for an unknown id.
    other = neighbours.nowhere(id)
    nobodys = client.ask(request.with_id(other), neighbour.secrets[case.actor])
    return (
        None
        if answer.masked(id) == nobodys.masked(other)
        else f"{answer.body[:200]}, of nobody's id: {nobodys.body[:200]}"
    )


def _asked_by_their_owner(
    neighbour: Neighbour, client: Client, method: str, path: str, operation: Mapping[str, Any]
) -> Iterator[int]:
    theirs = {"webhook_id": neighbour.ids[Kind.WEBHOOK], "event_id": neighbour.ids[Kind.EVENT]}
    for request in isolation.requests(method, path, operation):
        for kind in Kind if request.where else [None]:
            asked = request if kind is None else request.with_id(neighbour.ids[kind])
            answer = client.ask(
                neighbours.filled(asked, isolation.OTHER_PARAMETERS | theirs), neighbour.secret
            )
            assert answer.status < 500, answer.body
            yield answer.status


POINTERS = [
    "UPDATE batches SET input_file_id = :file WHERE id = :own_batch",
    "UPDATE batches SET output_file_id = :file WHERE id = :own_batch",
    "UPDATE batches SET error_file_id = :file WHERE id = :own_batch",
    "UPDATE batches SET schedule_id = :schedule WHERE id = :own_batch",
    "UPDATE schedule_runs SET schedule_id = :own_schedule WHERE id = :run",
    "UPDATE files SET batch_id = :batch, part = 'output' WHERE id = :own_file",
    "UPDATE schedules SET file_id = :file WHERE id = :own_schedule",
    "UPDATE inbox_requests SET schedule_id = :own_schedule, run_id = :run",
    "UPDATE api_keys SET rotated_from = :key WHERE id = :own_key",
    "UPDATE uploads SET file_id = :file WHERE id = :own_upload",
]


@pytest.mark.parametrize("actor", [actor for actor in Actor if actor.is_valid])
def test_no_row_points_across_accounts_or_modes(neighbour: Neighbour, actor: Actor) -> None:
    theirs = {name: UUID(hex=id[-32:]) for name, id in neighbour.ids.items()}
    own = {
        f"own_{name.removesuffix('_id')}": UUID(hex=id[-32:])
        for name, id in neighbour.own[actor].items()
        if name not in OTHER_PARAMETERS
    }
    for statement in POINTERS:
        values = {
            name: value
            for name, value in (theirs | own).items()
            if re.search(rf":{name}\b", statement)
        }
        with pytest.raises(sqlalchemy.exc.IntegrityError) as caught, db.transaction() as session:
            session.execute(text(statement), values)
        assert isinstance(caught.value.orig, psycopg.errors.ForeignKeyViolation), statement


def test_what_is_public_shows_nothing(neighbour: Neighbour, client: Client) -> None:
    for path in isolation.PUBLIC:
        answer = client.ask(Request("GET", path), None)
        assert neighbour.leaks(answer) == []


def test_the_owner_sees_in_every_list_what_others_do_not(
    neighbour: Neighbour, client: Client
) -> None:
    lists = (
        "/v1/files",
        "/v1/batches",
        "/v1/schedules",
        "/v1/api_keys",
        f"/v1/schedules/{neighbour.ids[Kind.SCHEDULE]}/runs",
    )
    for path in lists:
        answer = client.ask(Request("GET", path), neighbour.secret)
        assert answer.status == 200
        assert neighbour.leaks(answer) != [], path


def test_an_idempotency_key_is_its_accounts_own(neighbour: Neighbour, client: Client) -> None:
    upload = next(
        isolation.requests(*next(route for route in ROUTES if route[:2] == ("POST", "/v1/files")))
    )
    keyed = Request(
        upload.method,
        upload.path,
        body=upload.body,
        headers=(("idempotency-key", IDEMPOTENCY_KEY),),
    )
    assert "idempotency_key_reused" in client.ask(keyed, neighbour.secret).body
    assert client.ask(keyed, neighbour.secrets[Actor.OTHER_ACCOUNT]).status == 200
