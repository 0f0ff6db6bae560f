"""/v1/webhooks, /v1/events, and the webhook of a batch."""

import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from tests import factories
from tests.integration.conftest import Answer, Api, new_key
from tests.webhooks import SECRET, completed, deliveries_to, endpoint, set_endpoint
from xalen_batch import db, ids
from xalen_batch.accounts.accounts import Caller, Scope, authenticate
from xalen_batch.endpoints.names import CHAT
from xalen_batch.models import AuditEntry, IdempotencyKey, WebhookEndpoint

Configure = Callable[..., None]
URL = "https://example.com/hooks"


@pytest.fixture
def api(api: Api) -> Api:
    """The API for a new account, with a key that may change webhooks."""
    return Api(api.port, new_key(scopes=list(Scope)))


@pytest.fixture
def caller(api: Api) -> Caller:
    with db.transaction() as session:
        return authenticate(session, api.key)


def create(api: Api, **fields: Any) -> dict[str, Any]:
    answer = api.ask("POST", "/v1/webhooks", {"url": URL, **fields})
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json
    return found


def uuid(webhook: dict[str, Any]) -> UUID:
    id = ids.parse("whe", webhook["id"])
    assert id
    return id


class TestObject:
    def test_a_webhook_is_made_with_a_secret_that_is_shown_once(self, api: Api) -> None:
        answer = api.ask("POST", "/v1/webhooks", {"url": "HTTPS://Example.com/hooks"})
        made = answer.json
        assert answer.headers["cache-control"] == "no-store"
        secret = made.pop("secret")
        assert secret.startswith("whsec_")
        assert made == {
            "id": made["id"],
            "object": "webhook_endpoint",
            "url": URL,
            "description": None,
            "events": None,
            "status": "enabled",
            "disabled_reason": None,
            "batch_id": None,
            "created_at": made["created_at"],
            "previous_secret_expires_at": None,
            "last_delivery_at": None,
            "last_status_code": None,
            "consecutive_failures": 0,
            "livemode": False,
        }
        assert made["id"].startswith("whe_")
        assert abs(made["created_at"] - time.time()) < 60
        assert api.ask("GET", f"/v1/webhooks/{made['id']}").json == made
        assert api.ask("GET", "/v1/webhooks").json["data"] == [made]
        assert secret not in api.ask("GET", "/v1/webhooks").body.decode()

    def test_lists_are_paged_newest_first_without_deleted_ones(self, api: Api) -> None:
        made = [create(api)["id"] for _ in range(3)]
        assert api.ask("DELETE", f"/v1/webhooks/{made[1]}").json == {
            "id": made[1],
            "object": "webhook_endpoint",
            "deleted": True,
        }
        first = api.ask("GET", "/v1/webhooks?limit=1").json
        assert ([hook["id"] for hook in first["data"]], first["has_more"]) == ([made[2]], True)
        second = api.ask("GET", f"/v1/webhooks?limit=1&after={made[2]}").json
        assert ([hook["id"] for hook in second["data"]], second["has_more"]) == ([made[0]], False)
        assert api.ask("GET", f"/v1/webhooks/{made[1]}").error["code"] == "not_found"
        [gone] = [hook for hook in made if hook == made[1]]
        found = endpoint(uuid({"id": gone}))
        assert (found.secret, found.previous_secret) == ("", None)

    def test_a_change_keeps_what_it_does_not_name(self, api: Api) -> None:
        hook = create(api, events=["batch.failed"], description="on call")
        path = f"/v1/webhooks/{hook['id']}"
        changed = api.ask("PATCH", path, {"url": "https://example.com/b"}).json
        assert (changed["url"], changed["events"], changed["description"]) == (
            "https://example.com/b",
            ["batch.failed"],
            "on call",
        )
        changed = api.ask("PATCH", path, {"events": None, "description": None}).json
        assert (changed["events"], changed["description"]) == (None, None)

    def test_disabling_and_enabling_forgets_failures(self, api: Api) -> None:
        hook = create(api, enabled=False)
        assert (hook["status"], hook["disabled_reason"]) == ("disabled", "manual")
        set_endpoint(uuid(hook), consecutive_failures=7, disabled_reason="gone")
        path = f"/v1/webhooks/{hook['id']}"
        enabled = api.ask("PATCH", path, {"enabled": True}).json
        assert (enabled["status"], enabled["disabled_reason"], enabled["consecutive_failures"]) == (
            "enabled",
            None,
            0,
        )
        assert api.ask("PATCH", path, {"enabled": False}).json["status"] == "disabled"

    def test_a_webhook_whose_url_is_not_allowed_any_more_can_be_disabled(
        self, api: Api, configure: Configure
    ) -> None:
        configure(webhook_allow_http=True)
        hook = create(api, url="http://example.com/")
        configure(webhook_allow_http=False)
        changed = api.ask("PATCH", f"/v1/webhooks/{hook['id']}", {"enabled": False})
        assert changed.json["status"] == "disabled"

    def test_a_rotation_keeps_the_old_secret_for_the_overlap(self, api: Api) -> None:
        hook = create(api)
        path = f"/v1/webhooks/{hook['id']}/rotate"
        rotated = api.ask("POST", path)
        assert rotated.json["secret"] != hook["secret"]
        assert rotated.headers["cache-control"] == "no-store"
        assert abs(rotated.json["previous_secret_expires_at"] - time.time() - 86_400) < 60
        assert endpoint(uuid(hook)).previous_secret == hook["secret"]
        again = api.ask("POST", path, {"overlap_seconds": 0}).json
        assert again["previous_secret_expires_at"] is None
        found = endpoint(uuid(hook))
        assert (found.secret, found.previous_secret) == (again["secret"], None)

    def test_the_log_of_changes_names_the_key_and_no_secret(self, api: Api, caller: Caller) -> None:
        hook = create(api)
        path = f"/v1/webhooks/{hook['id']}"
        api.ask("PATCH", path, {"events": ["batch.failed"]})
        secret = api.ask("POST", f"{path}/rotate").json["secret"]
        api.ask("DELETE", path)
        with db.reading() as session:
            entries = session.scalars(
                select(AuditEntry).where(AuditEntry.object_id == hook["id"]).order_by(AuditEntry.id)
            ).all()
        assert [entry.action for entry in entries] == ["webhook.created"] + ["webhook.changed"] * 3
        assert {entry.actor for entry in entries} == {caller.actor}
        assert entries[1].after == {"events": ["batch.failed"]}
        assert list(entries[2].after or ()) == ["rotated_at"]
        shown = repr([(entry.before, entry.after) for entry in entries])
        assert secret not in shown
        assert hook["secret"] not in shown


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "url", None),
        ({"url": "http://example.com/"}, "url", "invalid_webhook_url"),
        ({"url": "https://127.0.0.1/"}, "url", "webhook_address_refused"),
        ({"url": URL, "events": []}, "events", None),
        ({"url": URL, "events": ["batch.done"]}, "events.0", None),
        ({"url": URL, "evnts": ["batch.failed"]}, "evnts", None),
        ({"url": URL, "description": "x" * 501}, "description", None),
        ({"url": URL + "\0"}, "url", None),
    ],
)
def test_a_bad_request_names_its_field(
    api: Api, body: dict[str, Any], param: str, code: str | None
) -> None:
    answer = api.ask("POST", "/v1/webhooks", body)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert code is None or answer.error["code"] == code


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("rotate", {"overlap_seconds": -1}, "overlap_seconds"),
        ("rotate", {"overlap_seconds": 8 * 86_400}, "overlap_seconds"),
        ("replay", {"from": "2026-11-02", "to": "2026-11-01"}, "to"),
        ("replay", {"from": "yesterday", "to": "2026-11-01"}, "from"),
        ("replay", {"from": "2026-11-01", "to": "2026-11-02", "state": "lost"}, "state"),
    ],
)
def test_a_bad_request_about_a_webhook_names_its_field(
    api: Api, path: str, body: dict[str, Any], param: str
) -> None:
    answer = api.ask("POST", f"/v1/webhooks/{create(api)['id']}/{path}", body)
    assert (answer.status, answer.error["param"]) == (400, param)


class TestDeliveries:
    def test_a_test_event_waits_for_this_webhook_alone(self, api: Api) -> None:
        hook, other = create(api), create(api)
        sent = api.ask("POST", f"/v1/webhooks/{hook['id']}/test").json
        assert (sent["state"], sent["attempts"]) == ("pending", 0)
        assert sent["event"]["type"] == "xalen.webhook.test"
        assert sent["event"]["data"] == {"id": hook["id"]}
        path = f"/v1/webhooks/{hook['id']}/deliveries"
        assert api.ask("GET", path).json["data"] == [sent]
        assert api.ask("GET", f"/v1/webhooks/{other['id']}/deliveries").json["data"] == []

    def test_a_disabled_webhook_is_not_sent_to(self, api: Api, caller: Caller) -> None:
        hook = create(api, enabled=False)
        completed(caller)
        event = api.ask("GET", "/v1/events").json["data"][0]["id"]
        span = {"from": "2026-01-01", "to": "2099-01-01"}
        for path, body in (
            ("test", None),
            ("replay", span),
            (f"deliveries/{event}/redeliver", None),
        ):
            answer = api.ask("POST", f"/v1/webhooks/{hook['id']}/{path}", body)
            assert (answer.status, answer.error["code"]) == (409, "webhook_disabled")
            assert f"PATCH /v1/webhooks/{hook['id']}" in answer.error["message"]

    def test_deliveries_are_filtered_and_paged_newest_event_first(
        self, api: Api, caller: Caller
    ) -> None:
        hook = create(api)
        completed(caller, 3)
        path = f"/v1/webhooks/{hook['id']}/deliveries"
        first = api.ask("GET", f"{path}?limit=2").json
        second = api.ask("GET", f"{path}?limit=2&after={first['last_id']}").json
        listed = [one["id"] for one in (*first["data"], *second["data"])]
        assert listed == sorted(listed, reverse=True)
        assert (len(listed), first["has_more"], second["has_more"]) == (3, True, False)
        assert api.ask("GET", f"{path}?state=failed").json["data"] == []
        assert len(api.ask("GET", f"{path}?state=pending").json["data"]) == 3
        assert api.ask("GET", f"{path}?state=lost").error["param"] == "state"

    def test_an_event_that_nobody_has_is_not_found(self, api: Api) -> None:
        path = f"/v1/webhooks/{create(api)['id']}/deliveries"
        for id in ("evt_x", f"evt_{'0' * 32}"):
            answer = api.ask("POST", f"{path}/{id}/redeliver")
            assert (answer.status, answer.error["param"]) == (404, "event_id")


class TestEvents:
    def test_events_are_listed_as_their_receivers_get_them(self, api: Api, caller: Caller) -> None:
        completed(caller, 3)
        newest = api.ask("GET", "/v1/events?limit=1").json
        assert newest["has_more"]
        [event] = newest["data"]
        assert list(event) == ["id", "object", "created_at", "type", "data"]
        assert (event["object"], event["type"]) == ("event", "batch.completed")
        oldest = api.ask("GET", "/v1/events?order=asc").json["data"]
        assert [one["id"] for one in oldest][-1] == event["id"]
        rest = api.ask("GET", f"/v1/events?order=asc&after={oldest[0]['id']}").json["data"]
        assert rest == oldest[1:]
        assert api.ask("GET", "/v1/events?type=batch.failed").json["data"] == []
        assert api.ask("GET", "/v1/events?type=batch.done").error["param"] == "type"


class TestOfABatch:
    def ask(self, api: Api, webhook: Any, **headers: str) -> Answer:
        file = api.upload(factories.jsonl([factories.chat_line("a")]))
        body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        return api.ask("POST", "/v1/batches", body | {"webhook": webhook}, headers=headers)

    def test_a_batch_may_bring_its_own(self, api: Api) -> None:
        batch = self.ask(api, {"url": URL, "secret": SECRET}).json
        [hook] = api.ask("GET", f"/v1/webhooks?batch_id={batch['id']}").json["data"]
        assert (hook["batch_id"], hook["url"]) == (batch["id"], URL)
        assert endpoint(uuid(hook)).secret == SECRET
        # It is not one of the account's.
        assert api.ask("GET", "/v1/webhooks").json["data"] == []
        assert api.ask("GET", "/v1/limits").json["webhooks"]["used"] == 0
        api.ask("POST", f"/v1/batches/{batch['id']}/cancel")
        assert deliveries_to(uuid(hook)) == []

    def test_without_a_secret_its_deliveries_are_not_signed(self, api: Api) -> None:
        batch = self.ask(api, {"url": URL}).json
        [hook] = api.ask("GET", f"/v1/webhooks?batch_id={batch['id']}").json["data"]
        assert endpoint(uuid(hook)).secret == ""

    def test_a_repeated_request_makes_it_once_and_keeps_no_secret(self, api: Api) -> None:
        file = api.upload(factories.jsonl([factories.chat_line("a")]))
        body = {
            "input_file_id": file["id"],
            "endpoint": CHAT,
            "completion_window": "24h",
            "webhook": {"url": URL, "secret": SECRET},
        }
        for _ in range(2):
            answer = api.ask("POST", "/v1/batches", body, headers={"idempotency-key": "once"})
            assert answer.status == 200
        with db.reading() as session:
            assert len(session.scalars(select(WebhookEndpoint)).all()) == 1
            assert SECRET.encode() not in session.scalars(select(IdempotencyKey.answer)).one()

    @pytest.mark.parametrize(
        ("webhook", "param"),
        [
            ({}, "webhook.url"),
            ({"url": "http://example.com/"}, "webhook.url"),
            ({"url": URL, "secret": "hush"}, "webhook.secret"),
            ({"url": URL, "events": []}, "webhook.events"),
            (URL, "webhook"),
        ],
    )
    def test_a_bad_one_makes_no_batch(self, api: Api, webhook: Any, param: str) -> None:
        answer = self.ask(api, webhook)
        assert (answer.status, answer.error["param"]) == (400, param)
        assert "hush" not in answer.error["message"]
        assert api.ask("GET", "/v1/batches").json["data"] == []

    def test_a_batch_id_of_another_form_is_refused(self, api: Api) -> None:
        answer = api.ask("GET", "/v1/webhooks?batch_id=x")
        assert (answer.status, answer.error["param"]) == (400, "batch_id")
