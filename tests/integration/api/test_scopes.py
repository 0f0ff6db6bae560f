"""Every route, by a key of every combination of scopes: no key sees a field without the scope of
the field's own route.

Routes, schemas and the scope of each field come from the API's own description, so a new route or
field is in the matrix by itself.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, combinations
from typing import Any

import pytest
from openai.types import Batch as ClientBatch

from tests import billing, factories
from tests.integration import isolation, neighbours
from tests.integration.isolation import DESCRIPTION, OTHER_PARAMETERS, Kind, Request
from tests.integration.neighbours import CANARY, Answer, Client, Neighbour
from xalen_batch import db, ids
from xalen_batch.accounts import accounts
from xalen_batch.accounts.accounts import Scope
from xalen_batch.api import money_schemas
from xalen_batch.api import scopes as scoped
from xalen_batch.api.schedule_schemas import RunObject
from xalen_batch.api.schemas import ListObject
from xalen_batch.billing import invoices
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import Account, ScheduleRun
from xalen_batch.schedules import runs
from xalen_batch.schedules.runs import Trigger
from xalen_batch.states import RunState
from xalen_batch.webhooks import endpoints, samples

# Deletions come last: the other routes need the objects that they delete.
ROUTES = sorted(isolation.operations(), key=lambda route: route[0] == "DELETE")
COMBINATIONS = list(
    chain.from_iterable(combinations(Scope, size) for size in range(1, len(Scope) + 1))
)
# Their answers have the values of the request, ids, and the initial state.
CREATIONS = {
    "POST /v1/uploads",
    "POST /v1/files",
    "POST /v1/batches",
    "POST /v1/schedules",
    "POST /v1/messages/batches",
}
# The fields that a key with only the scope `submit` sees in the answers to other requests.
ALWAYS = {
    "BatchObject": {
        "id",
        "object",
        "endpoint",
        "input_file_id",
        "completion_window",
        "status",
        "created_at",
    },
    "MessageBatch": {"id", "type", "processing_status", "created_at", "expires_at"},
    "DeletedMessageBatch": {"id", "type"},
    "ScheduleObject": {"id", "object", "status"},
    "RunObject": {"id", "object", "schedule_id", "state", "batch_id"},
    "RequestsObject": {"object", "schedule_id", "accepted", "known"},
    "UploadObject": {
        "id",
        "object",
        "bytes",
        "created_at",
        "expires_at",
        "purpose",
        "status",
        "file",
    },
    "PartObject": {"id", "object", "created_at", "upload_id", "bytes", "sha256"},
    "DeletedFile": {"id", "object", "deleted"},
    "WebhookObject": {"id", "object", "status"},
    "NewWebhookObject": {"id", "object", "status", "secret"},
    "DeliveryObject": {"id", "object", "state"},
    "DeletedWebhook": {"id", "object", "deleted"},
    "ReplayObject": {"object", "events"},
    "OpenAIWebhookObject": {"id", "object"},
    "NewOpenAIWebhookObject": {"id", "object", "signing_secret"},
    "DeletedOpenAIWebhook": {"id", "object", "deleted"},
    "WebhookTestObject": {"object", "event_type", "status_code", "success", "webhook_endpoint_id"},
    "DeletedSchedule": {"id", "object", "deleted", "discarded_requests"},
}
SCHEMAS: dict[str, Any] = DESCRIPTION["components"]["schemas"]
# The scope that a route needs, by method and path; found once, by trying each.
NEEDED: dict[tuple[str, str], Scope] = {}


@dataclass(frozen=True)
class World:
    """An account with something of every kind.

    `priced`: a schedule whose last run has a cost. `total`: that cost. `webhook`: another webhook,
    as two routes delete one.
    """

    neighbour: Neighbour
    priced: str
    total: str
    webhook: str

    def target(self, method: str, path: str) -> dict[str, str]:
        """The path parameters of a route, by name."""
        found = self.neighbour.ids
        file = {
            "DELETE": Kind.UNUSED_FILE,
            "GET": Kind.OUTPUT if path.endswith("/content") else Kind.FILE,
        }.get(method, Kind.FILE)
        schedule = {"requests": found[Kind.INBOX], "run": found[Kind.SCHEDULE]}.get(
            path.rpartition("/")[2], self.priced
        )
        upload = Kind.UPLOAD if path.endswith("/complete") else Kind.OTHER_UPLOAD
        # Only the input of the running batch is in storage.
        batch = Kind.RUNNING if path.endswith(("/cancel", "/{custom_id}")) else Kind.BATCH
        return {
            "file_id": found[file],
            "batch_id": found[batch],
            "schedule_id": schedule,
            "key_id": found[Kind.KEY],
            "credit_note_id": found[Kind.CREDIT_NOTE],
            "response_id": found[Kind.RESPONSE],
            "message_batch_id": found[
                Kind.RUNNING_MESSAGE_BATCH if path.endswith("/cancel") else Kind.MESSAGE_BATCH
            ],
            "upload_id": found[upload],
            "webhook_id": (
                self.webhook if path.startswith("/v1/webhook_endpoints") else found[Kind.WEBHOOK]
            ),
            "event_id": found[Kind.EVENT],
            **OTHER_PARAMETERS,
            "month": f"{datetime.now(UTC):%Y-%m}",
        }

    def request(self, method: str, path: str, operation: Mapping[str, Any]) -> Request:
        """A request that succeeds for a key with the scope."""
        plain = next(isolation.requests(method, path, operation))
        if isinstance(plain.body, dict) and "input_file_id" in plain.body:
            plain = Request(
                method, path, body=plain.body | {"input_file_id": self.neighbour.ids[Kind.FILE]}
            )
        return neighbours.filled(plain, self.target(method, path))


@pytest.fixture
def world(database: str, valkey: object, monkeypatch: pytest.MonkeyPatch) -> World:
    # As if the webhook's receiver answered.
    monkeypatch.setattr(samples, "send", lambda endpoint, type: 200)
    neighbour = neighbours.move_in()
    with db.transaction() as session:
        caller = accounts.authenticate(session, neighbour.secret)
        schedule = factories.schedule(
            session, caller, name=CANARY, template_file_id=neighbour.ids[Kind.TEMPLATE]
        )
        run = ScheduleRun(
            **runs.blank(
                schedule,
                datetime(2026, 11, 25, 1, 30, tzinfo=UTC),
                Trigger.SCHEDULE,
                RunState.SUCCEEDED,
            )
        )
        session.add(run)
        session.flush()
    batch = billing.ended(
        [billing.Ran(Usage(7_654_321, 1_234_567))], caller, schedule_id=schedule.id, run_id=run.id
    )
    with db.transaction() as session:
        total = invoices.render(invoices.of_batch(session, batch))["total"]
        webhook = endpoints.create(session, caller, url="https://example.com/", description=CANARY)
    return World(neighbour, ids.render("sched", schedule.id), total, ids.render("whe", webhook.id))


@pytest.fixture
def client(port: int) -> Iterator[Client]:
    yield from neighbours.connect(port)


@pytest.mark.parametrize("scopes", COMBINATIONS, ids=lambda scopes: "+".join(scopes))
def test_a_key_sees_what_its_scopes_say_and_nothing_else(
    world: World, client: Client, scopes: tuple[Scope, ...]
) -> None:
    with db.transaction() as session:
        secret = factories.key(
            session, session.get_one(Account, world.neighbour.owner.account_id), scopes=scopes
        )
    problems = []
    for method, path, operation in ROUTES:
        needed = NEEDED.get((method, path)) or neighbours.scope_of(
            world.neighbour, client, method, path, operation
        )
        NEEDED[method, path] = needed
        request = world.request(method, path, operation)
        answer = client.ask(request, secret)
        problems += [
            f"{method} {path}: {problem}"
            for problem in _problems(world, request, answer, needed, operation, scopes)
        ]
    assert problems == []


def _problems(
    world: World,
    request: Request,
    answer: Answer,
    needed: Scope,
    operation: Mapping[str, Any],
    scopes: tuple[Scope, ...],
) -> Iterator[str]:
    if needed not in scopes:
        if answer.status != 403:
            yield f"{answer.status} without the scope {needed}"
        return
    if answer.status != 200:
        yield f"{answer.status} {answer.body[:200]}"
        return
    if Scope.BILLING not in scopes and world.total in answer.body:
        yield "a cost without the scope billing"
    asked = json.dumps([request.parameters, str(request.body)])
    if needed is Scope.SUBMIT and Scope.READ not in scopes:
        # The id of a message batch has that of its batch in it.
        theirs = {id for id in (CANARY, *world.neighbour.ids.values()) if id not in asked}
        yield from (
            f"{found} without the scope read" for found in _leaked(world, request, answer, theirs)
        )
    if request.route not in CREATIONS and (schema := _answered(operation)) is not None:
        yield from _fields(schema, json.loads(answer.body), {scope.value for scope in scopes})


def _leaked(world: World, request: Request, answer: Answer, theirs: set[str]) -> Iterator[str]:
    for found in theirs:
        # The answer with a cancelled batch keeps the fields that OpenAI's type requires.
        is_required = request.path.endswith("/cancel") and found == world.neighbour.ids[Kind.FILE]
        if found in answer.body and not is_required:
            yield found


def _answered(operation: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema of a route's answer; None where that is not JSON."""
    content = operation["responses"]["200"].get("content", {})
    found: Mapping[str, Any] | None = content.get("application/json", {}).get("schema")
    return found


def _objects(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name, schema) of the schemas to which a schema refers directly."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield name, SCHEMAS[name]
    for inner in (*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())):
        yield from _objects(inner)


def _fields(schema: Mapping[str, Any], value: Any, scopes: set[str]) -> Iterator[str]:
    """The fields of an answer that are shown against their scope, missing, or hidden needlessly."""
    for name, described in _objects(schema):
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, dict):
                continue
            for field, inner in described.get("properties", {}).items():
                if field not in part:
                    yield f"{name}.{field} is missing"
                elif (
                    inner.get("x-scope", next(iter(scopes))) not in scopes
                    and part[field] is not None
                ):
                    yield f"{name}.{field} is shown"
                else:
                    yield from _fields(inner, part[field], scopes)


def test_the_owner_of_a_field_decides_who_sees_it() -> None:
    """`x-scope` agrees with the routes: `read` for fields that a GET shows, `billing` for money,
    none for others.
    """
    for method, path, operation in ROUTES:
        schema = _answered(operation)
        if (
            method == "GET"
            or f"{method} {path}" in CREATIONS
            or schema is None
            or path.startswith("/v1/api_keys")
        ):
            continue
        for name, described in _inside(schema):
            if name in ALWAYS:
                hidden = {
                    field for field, inner in described["properties"].items() if "x-scope" in inner
                }
                assert set(described["properties"]) - hidden == ALWAYS[name], (
                    f"{method} {path} shows more of {name}"
                )
    for name, described in SCHEMAS.items():
        for field, inner in described.get("properties", {}).items():
            # Billed amounts. Estimates come from list prices, and the routes of invoices and
            # statements need the scope for the whole answer.
            if re.search("cost|amount", field) and not hasattr(money_schemas, name):
                assert inner.get("x-scope") == "billing", f"{name}.{field}"


def _inside(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, described in _objects(schema):
        yield name, described
        if name.startswith("ListObject"):
            yield from _inside(described["properties"]["data"])


def test_every_answer_to_a_submit_is_known() -> None:
    answered = {
        name
        for method, path, operation in ROUTES
        if method != "GET"
        and f"{method} {path}" not in CREATIONS
        and not path.startswith("/v1/api_keys")
        for name, _ in _inside(_answered(operation) or {})
    }
    assert answered - set(ALWAYS) == {"PreviewObject", "ListObject_RunObject_", "EstimateObject"}


def test_a_cancelled_batch_keeps_every_field_that_openais_type_requires() -> None:
    assert {
        name for name, field in ClientBatch.model_fields.items() if field.is_required()
    } == ALWAYS["BatchObject"]


def test_a_stored_answer_is_cut_for_the_key_that_replays_it(world: World, client: Client) -> None:
    with db.transaction() as session:
        account = session.get_one(Account, world.neighbour.owner.account_id)
        submitter = factories.key(session, account, scopes=[Scope.SUBMIT])
    request = Request(
        "POST", f"/v1/schedules/{world.priced}/run", headers=(("idempotency-key", "once"),)
    )
    first, again = (
        json.loads(client.ask(request, secret).body)
        for secret in (world.neighbour.secret, submitter)
    )
    assert first["timezone"] == "Europe/Berlin"
    assert again == {
        field: value if field in ALWAYS["RunObject"] else None for field, value in first.items()
    }


def test_an_answer_that_an_older_version_stored_is_cut_as_well() -> None:
    old = json.dumps(
        {"data": [{"id": "run_1", "cost": "1.5", "state": "waiting", "gone": 1}]}
    ).encode()
    cut = json.loads(scoped.render_stored(old, ListObject[RunObject], {"submit"}))
    assert (
        cut["data"][0] | {"id": "run_1", "cost": None, "state": "waiting", "timezone": None}
        == cut["data"][0]
    )


def test_a_list_of_anything_is_refused() -> None:
    with pytest.raises(TypeError, match="give the generic answer its class"):
        scoped.render(ListObject.of([], has_more=False), {"read"})
