"""The client's types have the fields of the server's schemas, in both directions."""

from typing import Any, get_args, get_type_hints

import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion

from tests.unit.client.stub_api import answer, refusal
from xalen import types
from xalen.types import results, schedule, webhook
from xalen.types.estimate import EstimateFields
from xalen_batch import windows
from xalen_batch.api import limits, money_schemas, schedule_schemas, schemas, webhook_schemas
from xalen_batch.fields import ExpiresAfter
from xalen_batch.models.events import EventType
from xalen_batch.models.webhooks import DeliveryState
from xalen_batch.schedules import definition, runs
from xalen_batch.states import OnInvalid, RunState, ScheduleStatus
from xalen_batch.webhooks.history import Replayed

ANSWERED = [
    (types.Estimate, money_schemas.EstimateObject),
    (types.ModelEstimate, money_schemas.ModelEstimateObject),
    (types.Invoice, money_schemas.InvoiceObject),
    (types.InvoiceLine, money_schemas.InvoiceLineObject),
    (types.Statement, money_schemas.StatementObject),
    (types.StatementLine, money_schemas.StatementLineObject),
    (types.CreditNote, money_schemas.CreditNoteObject),
    (types.Limits, limits.LimitsObject),
    (types.Standing, limits.Standing),
    (types.Schedule, schedule_schemas.ScheduleObject),
    (types.ScheduleRun, schedule_schemas.RunObject),
    (types.SchedulePreview, schedule_schemas.PreviewObject),
    (types.Fire, schedule_schemas.Fire),
    (types.DeletedSchedule, schedule_schemas.DeletedSchedule),
    (types.AddedRequests, schedule_schemas.RequestsObject),
    (types.Webhook, webhook_schemas.WebhookObject),
    (types.NewlySecretWebhook, webhook_schemas.NewWebhookObject),
    (types.DeletedWebhook, webhook_schemas.DeletedWebhook),
    (types.WebhookDelivery, webhook_schemas.DeliveryObject),
    (types.WebhookReplay, webhook_schemas.ReplayObject),
    (types.Event, webhook_schemas.EventObject),
    (webhook.EventData, webhook_schemas.EventData),
    (schedule.RunCounts, schedule_schemas.RunCounts),
    (schedule.RecentRun, schedule_schemas.RecentRun),
    (schedule.ManifestEntry, schedule_schemas.ManifestEntry),
    (schedule.ScheduleSource, definition.Source),
    (schedule.ScheduleInbox, schedule_schemas.InboxObject),
    (schedule.ScheduleWindow, windows.ExecutionWindow),
    (schedule.ScheduleExpiry, ExpiresAfter),
]
SENT = [
    (schedule.NewSchedule, definition.Definition),
    (schedule.ScheduleChanges, definition.Definition),
    (schedule.PreviewFields, schedule_schemas.PreviewRequest),
    (schedule.Source, definition.Source),
    (schedule.Inbox, definition.Inbox),
    (schedule.ExecutionWindow, windows.ExecutionWindow),
    (schedule.ExpiresAfter, ExpiresAfter),
    (EstimateFields, schemas.EstimateRequest),
    (webhook.NewWebhook, webhook_schemas.WebhookRequest),
    (webhook.WebhookChanges, webhook_schemas.WebhookChange),
    (webhook.BatchWebhook, schemas.BatchWebhook),
]


@pytest.mark.parametrize(("ours", "theirs"), ANSWERED, ids=lambda kind: kind.__name__)
def test_an_answer_has_the_fields_of_its_schema(ours: Any, theirs: Any) -> None:
    assert ours.model_fields.keys() == theirs.model_fields.keys()


@pytest.mark.parametrize(("ours", "theirs"), SENT, ids=lambda kind: kind.__name__)
def test_a_request_has_the_fields_of_its_schema(ours: Any, theirs: Any) -> None:
    assert get_type_hints(ours).keys() == theirs.model_fields.keys()


@pytest.mark.parametrize("ours", [schedule.NewSchedule, schedule.PreviewFields, EstimateFields])
def test_a_request_requires_what_its_schema_requires(ours: Any) -> None:
    theirs: Any = dict(SENT)[ours]
    required = {name for name, field in theirs.model_fields.items() if field.is_required()}
    assert ours.__required_keys__ == required


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (schedule.OnInvalid, OnInvalid),
        (schedule.RunState, RunState),
        (schedule.ScheduleStatus, ScheduleStatus),
        (schedule.Trigger, runs.Trigger),
        (webhook.EventType, EventType),
        (webhook.DeliveryState, DeliveryState),
        (webhook.Replayed, Replayed),
    ],
)
def test_the_words_are_the_servers(ours: Any, theirs: Any) -> None:
    assert set(get_args(ours)) == set(theirs)


@pytest.mark.parametrize("name", ["Overlap", "Misfire", "OnEmpty"])
def test_the_rules_are_the_servers(name: str) -> None:
    assert set(get_args(getattr(schedule, name))) == set(get_args(getattr(definition, name)))


def test_an_answer_is_an_object_of_openai() -> None:
    parsed = results.parse(answer("a", "text"), ChatCompletion, {"custom_id": "a"})
    assert isinstance(parsed.response, ChatCompletion)
    assert parsed.response.choices[0].message.content == "text"
    assert (parsed.error, parsed.request) == (None, {"custom_id": "a"})


def test_each_endpoint_has_its_type() -> None:
    assert results.ANSWERS["/v1/embeddings"] is CreateEmbeddingResponse
    assert results.ANSWERS["/v1/completions"] is Completion
    assert results.ANSWERS["/v1/rerank"] is types.RerankResponse


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (refusal("a"), ("batch_expired", "late", None)),
        (
            {
                "custom_id": "a",
                "response": {
                    "status_code": 400,
                    "body": {"error": {"code": "bad", "message": "no", "type": "t"}},
                },
                "error": None,
            },
            ("bad", "no", 400),
        ),
        (
            {"custom_id": "a", "response": {"status_code": 500, "body": "oops"}, "error": None},
            (None, "oops", 500),
        ),
    ],
)
def test_an_error_has_its_code_message_and_status(
    line: dict[str, Any], expected: tuple[str | None, str, int | None]
) -> None:
    parsed = results.parse(line, ChatCompletion, None)
    assert parsed.response is None
    assert parsed.error == results.LineError(*expected)
