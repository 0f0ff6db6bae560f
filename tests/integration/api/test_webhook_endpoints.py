"""/v1/webhook_endpoints, with the methods of the `openai` package over a socket."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import openai
import pytest
from openai import OpenAI
from openai.types import webhooks as theirs
from sqlalchemy import select

from tests.integration.conftest import Api, new_key
from tests.receivers import Receiver, receiving, status
from tests.webhooks import deliveries_to, endpoint, set_endpoint
from xalen_batch import db, ids
from xalen_batch.accounts.accounts import Scope
from xalen_batch.api import webhook_endpoints as ours
from xalen_batch.models import AuditEntry, Event
from xalen_batch.models.events import EventType

Configure = Callable[..., None]
URL = "https://example.com/hooks"
EVERY = [type.value for type in EventType]


@pytest.fixture
def api(api: Api) -> Api:
    """The API for a new account, with a key that may change webhooks."""
    return Api(api.port, new_key(scopes=list(Scope)))


@pytest.fixture
def client(api: Api) -> Iterator[OpenAI]:
    url = f"http://127.0.0.1:{api.port}/v1"
    with OpenAI(base_url=url, api_key=api.key, max_retries=0) as client:
        yield client


@pytest.fixture
def receiver(configure: Configure) -> Iterator[Receiver]:
    configure(webhook_allow_http=True, webhook_allowed_networks="127.0.0.1/32")
    with receiving() as receiver:
        yield receiver


def create(client: OpenAI, url: str = URL, **fields: Any) -> theirs.WebhookEndpointWithSecret:
    given: dict[str, Any] = {"event_types": ["batch.completed"], "name": "mine"}
    return client.webhooks.create(url=url, **(given | fields))


def uuid(id: str) -> UUID:
    found = ids.parse("whe", id)
    assert found
    return found


@pytest.mark.parametrize(
    ("sdk", "schema"),
    [
        (theirs.WebhookEndpoint, ours.OpenAIWebhookObject),
        (theirs.WebhookEndpointWithSecret, ours.NewOpenAIWebhookObject),
        (theirs.DeletedWebhookEndpoint, ours.DeletedOpenAIWebhook),
        (theirs.WebhookEndpointTestResult, ours.WebhookTestObject),
        (theirs.WebhookEventTypeList, ours.EventTypesObject),
    ],
)
def test_objects_have_the_fields_of_the_sdk(sdk: Any, schema: Any) -> None:
    assert schema.model_fields.keys() == sdk.model_fields.keys()


def test_a_webhook_is_made_with_a_secret_that_is_shown_once(client: OpenAI, api: Api) -> None:
    made = create(client)
    secret = made.signing_secret
    assert endpoint(uuid(made.id)).secret == secret
    assert made.to_dict() == {
        "id": made.id,
        "object": "webhook_endpoint",
        "created_at": made.created_at,
        "event_types": ["batch.completed"],
        "name": "mine",
        "signing_secret": secret,
        "signing_secret_hint": f"whsec_…{secret[-5:-1]}",
        "updated_at": made.created_at,
        "url": URL,
    }
    shown = client.webhooks.retrieve(made.id).to_dict()
    assert shown | {"signing_secret": secret} == made.to_dict()
    assert "signing_secret" not in shown
    assert [one.id for one in client.webhooks.list()] == [made.id]
    assert secret not in api.ask("GET", "/v1/webhook_endpoints").body.decode()
    # The same webhook in the other view.
    other = api.ask("GET", f"/v1/webhooks/{made.id}").json
    assert (other["description"], other["events"]) == ("mine", ["batch.completed"])


def test_an_answer_with_a_secret_is_not_stored_by_caches(client: OpenAI) -> None:
    raw = client.webhooks.with_raw_response
    made = raw.create(url=URL, name="mine", event_types=["batch.failed"])
    assert made.headers["cache-control"] == "no-store"
    assert raw.rotate_secret(made.parse().id).headers["cache-control"] == "no-store"


def test_a_webhook_of_the_other_view_gets_every_type_and_has_its_url_as_name(
    client: OpenAI, api: Api
) -> None:
    made = api.ask("POST", "/v1/webhooks", {"url": URL}).json
    found = client.webhooks.retrieve(made["id"])
    assert (found.name, found.event_types) == (URL, EVERY)
    # A change of another field does not freeze the list of types.
    client.webhooks.update(made["id"], name="mine")
    assert api.ask("GET", f"/v1/webhooks/{made['id']}").json["events"] is None


def test_lists_are_paged_newest_first(client: OpenAI) -> None:
    made = [create(client).id for _ in range(3)]
    assert [one.id for one in client.webhooks.list(limit=1)] == made[::-1]
    page = client.webhooks.list(limit=1, after=made[1])
    assert ([one.id for one in page.data], page.has_more) == ([made[0]], False)


def test_an_update_changes_the_fields_that_it_names_and_the_time(client: OpenAI) -> None:
    made = create(client, event_types=["batch.failed"])
    assert client.webhooks.update(made.id, name="mine").updated_at == made.created_at
    set_endpoint(uuid(made.id), created_at=endpoint(uuid(made.id)).created_at.replace(year=2020))
    changed = client.webhooks.update(made.id, url="https://example.com/b")
    assert (changed.url, changed.name, changed.event_types) == (
        "https://example.com/b",
        "mine",
        ["batch.failed"],
    )
    assert changed.updated_at is not None
    assert changed.updated_at > changed.created_at
    assert client.webhooks.update(made.id, event_types=["batch.expired"]).event_types == [
        "batch.expired"
    ]


@pytest.mark.parametrize("keeps", [True, False])
def test_a_rotation_keeps_the_old_secret_only_if_it_is_asked_to(
    client: OpenAI, keeps: bool
) -> None:
    made = create(client)
    options: dict[str, Any] = {"keep_old_secret_active_for_24_hours": True} if keeps else {}
    rotated = client.webhooks.rotate_secret(made.id, **options)
    assert rotated.signing_secret != made.signing_secret
    found = endpoint(uuid(made.id))
    assert found.secret == rotated.signing_secret
    assert found.previous_secret == (made.signing_secret if keeps else None)


def test_a_deleted_webhook_is_gone(client: OpenAI) -> None:
    made = create(client)
    assert client.webhooks.delete(made.id).to_dict() == {
        "id": made.id,
        "object": "webhook_endpoint.deleted",
        "deleted": True,
    }
    with pytest.raises(openai.NotFoundError, match="No such webhook"):
        client.webhooks.retrieve(made.id)


def test_the_event_types_are_those_of_webhooks(client: OpenAI) -> None:
    assert client.webhooks.event_types.list().data == EVERY


@pytest.mark.parametrize("type", ["response.failed", "xalen.schedule.run.missed"])
def test_a_test_posts_a_signed_sample_and_returns_the_status(
    client: OpenAI, receiver: Receiver, type: Any
) -> None:
    made = create(client, receiver.url)
    result = client.webhooks.test(made.id, event_type=type)
    assert result.to_dict() == {
        "object": "webhook_endpoint.test",
        "event_type": type,
        "status_code": 200,
        "success": True,
        "webhook_endpoint_id": made.id,
    }
    [got] = receiver.got
    event = client.webhooks.unwrap(got.body, got.headers, secret=made.signing_secret)
    assert (event.type, got.headers["webhook-id"]) == (type, event.id)
    # It is no event of the account.
    assert deliveries_to(uuid(made.id)) == []
    with db.reading() as session:
        assert session.scalars(select(Event).where(Event.id == UUID(event.id[-32:]))).all() == []


def test_a_test_signs_with_both_secrets_while_they_rotate(
    client: OpenAI, receiver: Receiver
) -> None:
    made = create(client, receiver.url)
    client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    client.webhooks.test(made.id, event_type="batch.failed")
    [got] = receiver.got
    client.webhooks.verify_signature(got.body, got.headers, secret=made.signing_secret)


def test_a_test_returns_the_status_of_a_failing_receiver(
    client: OpenAI, receiver: Receiver
) -> None:
    made = create(client, receiver.url)
    receiver.answer = status(503)
    result = client.webhooks.test(made.id, event_type="batch.failed")
    assert (result.status_code, result.success) == (503, True)
    # It does not count as a failure of the webhook.
    assert endpoint(uuid(made.id)).consecutive_failures == 0


def test_a_test_without_an_answer_is_an_error_that_clients_do_not_repeat(
    client: OpenAI, receiver: Receiver
) -> None:
    made = create(client, receiver.url)
    receiver.answer = lambda request, got: request.connection.close()
    with pytest.raises(openai.BadRequestError, match="did not answer") as caught:
        client.with_options(max_retries=2).webhooks.test(made.id, event_type="batch.failed")
    assert caught.value.code == "webhook_no_answer"
    assert len(receiver.got) == 1


def test_a_test_reaches_no_address_inside(client: OpenAI, receiver: Receiver) -> None:
    made = create(client, receiver.url)
    set_endpoint(uuid(made.id), url=f"http://169.254.169.254:{receiver.port}/")
    with pytest.raises(openai.BadRequestError, match="Not sent"):
        client.webhooks.test(made.id, event_type="batch.failed")


def test_a_disabled_webhook_is_not_tested(client: OpenAI, receiver: Receiver, api: Api) -> None:
    made = create(client, receiver.url)
    api.ask("PATCH", f"/v1/webhooks/{made.id}", {"enabled": False})
    with pytest.raises(openai.ConflictError, match="is disabled") as caught:
        client.webhooks.test(made.id, event_type="batch.failed")
    assert caught.value.code == "webhook_disabled"
    assert receiver.got == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"event_types": ["eval.run.failed"]}, "event_types"),
        ({"event_types": []}, "event_types"),
        ({"name": " "}, "name"),
        ({"name": "x" * 501}, "name"),
        ({"url": "http://10.0.0.1/"}, "url"),
        ({"extra_body": {"events": ["batch.failed"]}}, "events"),
    ],
)
def test_a_wrong_field_is_named(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, **fields)
    assert str(caught.value.param).startswith(param)
    made = create(client)
    with pytest.raises(openai.BadRequestError) as caught:
        client.webhooks.update(made.id, **fields)
    assert str(caught.value.param).startswith(param)


def test_the_log_of_changes_names_the_key_and_no_secret(client: OpenAI) -> None:
    made = create(client)
    client.webhooks.update(made.id, name="other")
    secret = client.webhooks.rotate_secret(made.id).signing_secret
    client.webhooks.delete(made.id)
    with db.reading() as session:
        entries = session.scalars(
            select(AuditEntry).where(AuditEntry.object_id == made.id).order_by(AuditEntry.id)
        ).all()
    assert [entry.action for entry in entries] == ["webhook.created"] + ["webhook.changed"] * 3
    assert all(entry.actor.startswith("key_") for entry in entries)
    told = str([(entry.before, entry.after) for entry in entries])
    assert secret not in told
    assert made.signing_secret not in told
