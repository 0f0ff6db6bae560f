"""The objects of the API beside those of `openai.types`."""

from xalen.types.estimate import Estimate, ModelEstimate
from xalen.types.invoice import CreditNote, Invoice, InvoiceLine, Statement, StatementLine
from xalen.types.limits import Limits, Standing
from xalen.types.rerank import RerankResponse, RerankResult
from xalen.types.results import LineError, LineResult
from xalen.types.schedule import (
    AddedRequests,
    DeletedSchedule,
    Fire,
    Schedule,
    SchedulePreview,
    ScheduleRun,
)
from xalen.types.webhook import (
    DeletedWebhook,
    Event,
    NewlySecretWebhook,
    Webhook,
    WebhookDelivery,
    WebhookReplay,
)

__all__ = [
    "AddedRequests",
    "CreditNote",
    "DeletedSchedule",
    "DeletedWebhook",
    "Estimate",
    "Event",
    "Fire",
    "Invoice",
    "InvoiceLine",
    "Limits",
    "LineError",
    "LineResult",
    "ModelEstimate",
    "NewlySecretWebhook",
    "RerankResponse",
    "RerankResult",
    "Schedule",
    "SchedulePreview",
    "ScheduleRun",
    "Standing",
    "Statement",
    "StatementLine",
    "Webhook",
    "WebhookDelivery",
    "WebhookReplay",
]
