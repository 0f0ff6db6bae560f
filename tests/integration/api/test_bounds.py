"""Everything that callers can create is bounded.

Each route that changes something names its bound here, and is refused at it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests import factories, ran
from tests.described import description
from tests.integration import isolation
from tests.integration.conftest import Answer, Api, multipart, new_key
from xalen_batch import config, db, ids
from xalen_batch.accounts.accounts import Owner, Scope, authenticate
from xalen_batch.accounts.quotas import Quota
from xalen_batch.endpoints.names import CHAT, ENDPOINTS
from xalen_batch.models import Batch
from xalen_batch.ratelimit import account

Configure = Callable[..., None]
Route = tuple[str, str]
LINES = factories.jsonl([factories.chat_line("a")])
NO_RESPONSE = f"/v1/responses/resp_{'0' * 32}"
NO_MESSAGE_BATCH = f"/v1/messages/batches/msgbatch_{'0' * 32}"
NO_UPLOAD = f"/v1/uploads/upload_{'0' * 32}"
NO_WEBHOOK = f"/v1/webhooks/whe_{'0' * 32}"
NO_ENDPOINT = f"/v1/webhook_endpoints/whe_{'0' * 32}"
NO_FILE = "/v1/files/file-" + "0" * 32
DESCRIBED = description()["paths"]


@dataclass(frozen=True)
class Given:
    """The objects before a request: a file, a batch, two schedules (one with an inbox), a key."""

    file_id: str
    batch_id: str
    schedule_id: str
    inbox_id: str
    key_id: str


@dataclass(frozen=True)
class Bound:
    """The quotas that bound a route, the settings that use them up, and a request that succeeds."""

    ask: Callable[[Given], tuple[str, Any]]
    full: dict[Quota, dict[str, int]]
    # Whether it counts as a change. All requests do but those that store nothing, and those whose
    # rows all count in a quota.
    is_change: bool = True


FULL_OF_RUNS = {Quota.WAITING_RUNS: {"quota_waiting_runs": 0, "quota_open_batches": 0}}
CHANGES: dict[Quota, dict[str, int]] = {}


def _schedule(given: Given) -> dict[str, Any]:
    return {
        "name": "nightly",
        "cron": "30 2 * * *",
        "endpoint": CHAT,
        "input_file_id": given.file_id,
    }


def _yesterday(_: Given) -> dict[str, str]:
    now = datetime.now(UTC)
    return {"from": (now - timedelta(days=2)).isoformat(), "to": now.isoformat()}


def _batch(given: Given) -> dict[str, str]:
    return {"input_file_id": given.file_id, "endpoint": CHAT, "completion_window": "24h"}


def _failed(given: Given) -> str:
    """The path of an ended batch of the same account, of which a line failed."""
    batch_id = ids.parse("batch", given.batch_id)
    with db.reading() as session:
        owner = session.get_one(Batch, batch_id)
    ended = ran.ended({"a": ran.BUSY}, Owner(owner.account_id, owner.livemode))
    return f"/v1/batches/{ids.render('batch', ended.id)}"


def _call(path: str) -> dict[str, Any]:
    """The body of a live call."""
    return {"model": factories.CHAT_MODEL, **isolation.ONE_OF[f"POST {path}"]}


BOUNDS: dict[Route, Bound] = {
    ("POST", "/v1/files"): Bound(
        lambda given: (
            "/v1/files",
            multipart(("purpose", None, b"batch"), ("file", "input.jsonl", LINES)),
        ),
        {Quota.FILES: {"quota_files": 0}, Quota.STORAGE_BYTES: {"quota_storage_bytes": 1}},
    ),
    ("POST", "/v1/uploads"): Bound(
        lambda given: (
            "/v1/uploads",
            {"bytes": 5, "filename": "a", "mime_type": "txt", "purpose": "batch"},
        ),
        {
            Quota.PENDING_UPLOADS: {"quota_pending_uploads": 0},
            Quota.FILES: {"quota_files": 0},
            Quota.STORAGE_BYTES: {"quota_storage_bytes": 1},
        },
    ),
    ("POST", "/v1/uploads/{upload_id}/parts"): Bound(
        lambda given: (f"{NO_UPLOAD}/parts", multipart(("data", "data", LINES))), CHANGES
    ),
    ("POST", "/v1/uploads/{upload_id}/complete"): Bound(
        lambda given: (f"{NO_UPLOAD}/complete", {"part_ids": ["part_1"]}), CHANGES
    ),
    ("POST", "/v1/uploads/{upload_id}/cancel"): Bound(
        lambda given: (f"{NO_UPLOAD}/cancel", None), CHANGES
    ),
    ("DELETE", "/v1/files/{file_id}"): Bound(lambda given: (NO_FILE, None), CHANGES),
    ("POST", "/v1/batches"): Bound(
        lambda given: ("/v1/batches", _batch(given)),
        {
            Quota.OPEN_BATCHES: {"quota_open_batches": 0},
            Quota.ENQUEUED_LINES: {"quota_enqueued_lines": 0},
            Quota.ENQUEUED_TOKENS: {"quota_enqueued_tokens": 0},
        },
    ),
    ("POST", "/v1/messages/batches"): Bound(
        lambda given: ("/v1/messages/batches", {"requests": isolation.VALUES["requests"]}),
        {
            Quota.OPEN_BATCHES: {"quota_open_batches": 0},
            Quota.FILES: {"quota_files": 0},
            Quota.STORAGE_BYTES: {"quota_storage_bytes": 1},
        },
    ),
    ("POST", "/v1/messages/batches/{message_batch_id}/cancel"): Bound(
        lambda given: (f"/v1/messages/batches/msg{given.batch_id}/cancel", None), CHANGES
    ),
    ("DELETE", "/v1/messages/batches/{message_batch_id}"): Bound(
        lambda given: (NO_MESSAGE_BATCH, None), CHANGES
    ),
    ("POST", "/v1/batches/{batch_id}/cancel"): Bound(
        lambda given: (f"/v1/batches/{given.batch_id}/cancel", None), CHANGES
    ),
    ("POST", "/v1/batches/{batch_id}/retry"): Bound(
        lambda given: (f"{_failed(given)}/retry", None),
        {
            Quota.OPEN_BATCHES: {"quota_open_batches": 0},
            Quota.FILES: {"quota_files": 0},
        },
    ),
    ("POST", "/v1/batches/estimate"): Bound(
        lambda given: ("/v1/batches/estimate", _batch(given)), CHANGES, is_change=False
    ),
    ("POST", "/v1/schedules"): Bound(
        lambda given: ("/v1/schedules", _schedule(given)),
        {Quota.SCHEDULES: {"quota_schedules": 0}},
    ),
    ("POST", "/v1/schedules/preview"): Bound(
        lambda given: ("/v1/schedules/preview", {"cron": "@daily"}), CHANGES, is_change=False
    ),
    ("PATCH", "/v1/schedules/{schedule_id}"): Bound(
        lambda given: (f"/v1/schedules/{given.schedule_id}", {"name": "other"}), CHANGES
    ),
    ("DELETE", "/v1/schedules/{schedule_id}"): Bound(
        lambda given: (f"/v1/schedules/{given.schedule_id}", None), CHANGES
    ),
    ("POST", "/v1/schedules/{schedule_id}/pause"): Bound(
        lambda given: (f"/v1/schedules/{given.schedule_id}/pause", None), CHANGES
    ),
    ("POST", "/v1/schedules/{schedule_id}/resume"): Bound(
        lambda given: (f"/v1/schedules/{given.schedule_id}/resume", None), CHANGES
    ),
    ("POST", "/v1/schedules/{schedule_id}/run"): Bound(
        lambda given: (f"/v1/schedules/{given.schedule_id}/run", None), FULL_OF_RUNS
    ),
    ("POST", "/v1/schedules/{schedule_id}/backfill"): Bound(
        lambda given: (f"/v1/schedules/{given.schedule_id}/backfill", _yesterday(given)),
        FULL_OF_RUNS,
    ),
    ("POST", "/v1/schedules/{schedule_id}/requests"): Bound(
        lambda given: (f"/v1/schedules/{given.inbox_id}/requests", factories.chat_line("a")),
        {
            Quota.INBOX_REQUESTS: {"quota_inbox_requests": 0},
            Quota.STORAGE_BYTES: {"quota_storage_bytes": 1},
        },
        is_change=False,
    ),
    # The requests of a second bound live calls, and the slots of their backend.
    **{
        ("POST", path): Bound(
            lambda given, path=path: (path, _call(path)), CHANGES, is_change=False
        )
        for path in ENDPOINTS
    },
    ("POST", "/v1/responses/{response_id}/cancel"): Bound(
        lambda given: (f"{NO_RESPONSE}/cancel", None), CHANGES
    ),
    ("DELETE", "/v1/responses/{response_id}"): Bound(lambda given: (NO_RESPONSE, None), CHANGES),
    ("POST", "/v1/api_keys"): Bound(
        lambda given: ("/v1/api_keys", {"name": "ci"}), {Quota.API_KEYS: {"quota_api_keys": 1}}
    ),
    ("POST", "/v1/api_keys/{key_id}/rotate"): Bound(
        lambda given: (f"/v1/api_keys/{given.key_id}/rotate", None),
        {Quota.API_KEYS: {"quota_api_keys": 1}},
    ),
    ("DELETE", "/v1/api_keys/{key_id}"): Bound(
        lambda given: (f"/v1/api_keys/{given.key_id}", None), CHANGES
    ),
    ("POST", "/v1/webhooks"): Bound(
        lambda given: ("/v1/webhooks", {"url": "https://example.com/"}),
        {Quota.WEBHOOKS: {"quota_webhooks": 0}},
    ),
    ("PATCH", "/v1/webhooks/{webhook_id}"): Bound(
        lambda given: (NO_WEBHOOK, {"enabled": False}), CHANGES
    ),
    ("DELETE", "/v1/webhooks/{webhook_id}"): Bound(lambda given: (NO_WEBHOOK, None), CHANGES),
    ("POST", "/v1/webhooks/{webhook_id}/rotate"): Bound(
        lambda given: (f"{NO_WEBHOOK}/rotate", None), CHANGES
    ),
    ("POST", "/v1/webhooks/{webhook_id}/test"): Bound(
        lambda given: (f"{NO_WEBHOOK}/test", None), CHANGES
    ),
    ("POST", "/v1/webhooks/{webhook_id}/deliveries/{event_id}/redeliver"): Bound(
        lambda given: (f"{NO_WEBHOOK}/deliveries/evt_{'0' * 32}/redeliver", None), CHANGES
    ),
    ("POST", "/v1/webhooks/{webhook_id}/replay"): Bound(
        lambda given: (f"{NO_WEBHOOK}/replay", _yesterday(given)), CHANGES
    ),
    ("POST", "/v1/webhook_endpoints"): Bound(
        lambda given: (
            "/v1/webhook_endpoints",
            {"url": "https://example.com/", "name": "ci", "event_types": ["batch.failed"]},
        ),
        {Quota.WEBHOOKS: {"quota_webhooks": 0}},
    ),
    ("POST", "/v1/webhook_endpoints/{webhook_id}"): Bound(
        lambda given: (NO_ENDPOINT, {"name": "other"}), CHANGES
    ),
    ("DELETE", "/v1/webhook_endpoints/{webhook_id}"): Bound(
        lambda given: (NO_ENDPOINT, None), CHANGES
    ),
    ("POST", "/v1/webhook_endpoints/{webhook_id}/rotate_secret"): Bound(
        lambda given: (f"{NO_ENDPOINT}/rotate_secret", None), CHANGES
    ),
    ("POST", "/v1/webhook_endpoints/{webhook_id}/test"): Bound(
        lambda given: (f"{NO_ENDPOINT}/test", {"event_type": "batch.failed"}), CHANGES
    ),
}
FILLED = [(route, quota) for route, bound in BOUNDS.items() for quota in bound.full]
WITH_KEY = [
    (method.upper(), path)
    for path, methods in DESCRIBED.items()
    for method, described in methods.items()
    if any(
        parameter["name"].lower() == "idempotency-key"
        for parameter in described.get("parameters", ())
    )
]


@pytest.fixture
def admin(api: Api) -> Api:
    account._limits.clear()
    account._buckets_of.cache_clear()
    return Api(api.port, new_key(scopes=list(Scope)))


@pytest.fixture
def given(admin: Api) -> Given:
    with db.transaction() as session:
        caller = authenticate(session, admin.key)
        file = factories.input_file(session, caller, LINES)
        file_id = ids.render("file", file.id)
        batch = factories.batch(session, caller, file)
        schedule = factories.schedule(session, caller, input_file_id=file_id, overlap="allow")
        inbox = factories.schedule(session, caller)
        return Given(
            file_id,
            ids.render("batch", batch.id),
            ids.render("sched", schedule.id),
            ids.render("sched", inbox.id),
            ids.render("key", caller.key_id),
        )


def ask(api: Api, route: Route, given: Given, **headers: str) -> Answer:
    path, body = BOUNDS[route].ask(given)
    if isinstance(body, tuple):
        kind, body = body
        headers["content-type"] = kind
    return api.ask(route[0], path, body, headers=headers)


def refuse(answer: Answer, quota: Quota, *, may_fit: bool = True) -> None:
    error = answer.json["error"]
    assert (answer.status, error["type"]) == (429, "rate_limit_error")
    # The errors of Anthropic's API have no code.
    assert answer.json.get("type") == "error" or error["code"] == f"{quota}_limit"
    if may_fit:
        assert int(answer.headers["retry-after"]) >= 1
    else:
        assert (answer.headers["x-should-retry"], answer.headers.get("retry-after")) == (
            "false",
            None,
        )


def test_every_route_that_takes_more_than_a_get_names_its_bound() -> None:
    found = {
        (method.upper(), path)
        for path, methods in DESCRIBED.items()
        for method in methods
        if method.upper() != "GET"
    }
    assert found == set(BOUNDS)


def test_every_quota_bounds_something() -> None:
    told = {quota for bound in BOUNDS.values() for quota in bound.full}
    assert told | {
        Quota.IDEMPOTENCY_KEYS,
        Quota.REQUESTS_PER_SECOND,
        Quota.CHANGES_PER_MINUTE,
    } == set(Quota)


def test_every_quota_is_a_setting() -> None:
    assert {f"quota_{quota}" for quota in Quota} == {
        name for name in config.Settings.model_fields if name.startswith("quota_")
    }


@pytest.mark.parametrize(("route", "quota"), FILLED)
def test_a_route_is_refused_by_its_quota_and_served_without(
    admin: Api, given: Given, configure: Configure, route: Route, quota: Quota
) -> None:
    configure(**BOUNDS[route].full[quota])
    # The limit of keys allows the caller's own key; other limits allow no object of the request.
    refuse(ask(admin, route, given), quota, may_fit=quota is Quota.API_KEYS)
    configure(**dict.fromkeys(BOUNDS[route].full[quota], "none"))
    answer = ask(admin, route, given)
    assert answer.status == 200, answer.body


@pytest.mark.parametrize("route", [route for route, bound in BOUNDS.items() if bound.is_change])
def test_a_change_is_refused_when_the_minutes_are_used_up(
    admin: Api, given: Given, configure: Configure, route: Route
) -> None:
    configure(quota_changes_per_minute=1)
    # A bucket holds at least two tokens.
    for _ in range(account.SMALLEST_BUCKET):
        assert admin.ask("DELETE", NO_FILE).status == 404
    refuse(ask(admin, route, given), Quota.CHANGES_PER_MINUTE)


@pytest.mark.parametrize("route", [route for route, bound in BOUNDS.items() if not bound.is_change])
def test_what_keeps_nothing_or_is_counted_row_by_row_is_no_change(
    admin: Api, given: Given, configure: Configure, route: Route
) -> None:
    configure(quota_changes_per_minute=1)
    assert [ask(admin, route, given).status for _ in range(3)] == [200] * 3


@pytest.mark.parametrize("route", WITH_KEY)
def test_a_key_that_would_be_kept_is_refused_while_too_many_are(
    admin: Api, given: Given, configure: Configure, route: Route
) -> None:
    configure(quota_idempotency_keys=1)
    held = {"idempotency-key": "held"}
    assert admin.ask("POST", "/v1/schedules", _schedule(given), headers=held).status == 200
    refuse(ask(admin, route, given, **{"idempotency-key": "one"}), Quota.IDEMPOTENCY_KEYS)
    # A stored answer is replayed even when the limit of stored answers is reached.
    assert admin.ask("POST", "/v1/schedules", _schedule(given), headers=held).status == 200
