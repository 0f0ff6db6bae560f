"""`GET /v1/limits`."""

from typing import Literal

from openai import BaseModel


class Standing(BaseModel):
    """How much of one quota is used. `limit` and `free` are None where there is no limit."""

    used: int
    limit: int | None
    free: int | None


class Limits(BaseModel):
    """The quotas of the account, in the mode of its key."""

    object: Literal["limits"]
    livemode: bool
    open_batches: Standing
    enqueued_lines: Standing
    enqueued_tokens: Standing
    files: Standing
    storage_bytes: Standing
    pending_uploads: Standing
    schedules: Standing
    waiting_runs: Standing
    inbox_requests: Standing
    api_keys: Standing
    webhooks: Standing
    idempotency_keys: Standing
    requests_per_second: Standing
    changes_per_minute: Standing
