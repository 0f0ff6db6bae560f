"""The tables, and the guarded UPDATEs that write a status. Imports no service."""

from xalen_batch.models.accounts import Account, ApiKey
from xalen_batch.models.audit import AuditEntry
from xalen_batch.models.base import Base
from xalen_batch.models.batch_notes import BatchNote
from xalen_batch.models.batch_paces import BatchPace
from xalen_batch.models.batches import Batch
from xalen_batch.models.console import ConsoleToken
from xalen_batch.models.credit_notes import CreditNote
from xalen_batch.models.erasures import Erasure
from xalen_batch.models.events import Event
from xalen_batch.models.files import File
from xalen_batch.models.idempotency import IdempotencyKey
from xalen_batch.models.invoices import Invoice, InvoiceLine
from xalen_batch.models.line_attempts import LineAttempts, LostLease
from xalen_batch.models.marks import StoreMark
from xalen_batch.models.prices import Price
from xalen_batch.models.quotas import AccountQuota, AccountTally
from xalen_batch.models.results import Result
from xalen_batch.models.schedules import ConsumedObject, InboxRequest, Schedule, ScheduleRun
from xalen_batch.models.sealed_lines import SealedLines
from xalen_batch.models.sign_offs import SignOff
from xalen_batch.models.tasks import Task
from xalen_batch.models.uploads import Upload, UploadPart
from xalen_batch.models.webhooks import WebhookDelivery, WebhookEndpoint
from xalen_batch.models.workers import Worker

__all__ = [
    "Account",
    "AccountQuota",
    "AccountTally",
    "ApiKey",
    "AuditEntry",
    "Base",
    "Batch",
    "BatchNote",
    "BatchPace",
    "ConsoleToken",
    "ConsumedObject",
    "CreditNote",
    "Erasure",
    "Event",
    "File",
    "IdempotencyKey",
    "InboxRequest",
    "Invoice",
    "InvoiceLine",
    "LineAttempts",
    "LostLease",
    "Price",
    "Result",
    "Schedule",
    "ScheduleRun",
    "SealedLines",
    "SignOff",
    "StoreMark",
    "Task",
    "Upload",
    "UploadPart",
    "WebhookDelivery",
    "WebhookEndpoint",
    "Worker",
]
