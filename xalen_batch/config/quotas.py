"""Settings of quotas."""

from pydantic import BaseModel, Field, field_validator

from xalen_batch.config.values import GiB, or_none


class Quotas(BaseModel):
    """Quotas of an account in one mode, unless an operator gave it others (docs/limits.md)."""

    quota_open_batches: int | None = Field(
        1_000, ge=0, description="Most batches of an account that have not ended; `none`: no limit."
    )
    quota_enqueued_lines: int | None = Field(
        5_000_000, ge=0, description="Most lines in those batches; `none`: no limit."
    )
    quota_enqueued_tokens: int | None = Field(
        None,
        ge=0,
        description=(
            "Most input tokens in them, at a token for four bytes of a line. Unset or `none`: no"
            " limit."
        ),
    )
    quota_files: int | None = Field(
        100_000,
        ge=0,
        description="Most files of an account, output files included; `none`: no limit.",
    )
    quota_storage_bytes: int | None = Field(
        100 * GiB,
        ge=0,
        description=(
            "Most bytes of an account's files, of what its pending uploads declare, and of the"
            " requests in its inboxes; `none`: no limit."
        ),
    )
    quota_pending_uploads: int | None = Field(
        100,
        ge=0,
        description="Most uploads in parts of an account that are pending; `none`: no limit.",
    )
    quota_schedules: int | None = Field(
        1_000, ge=0, description="Most schedules of an account; `none`: no limit."
    )
    quota_waiting_runs: int | None = Field(
        1_000,
        ge=0,
        description="Most runs of an account's schedules that wait to start; `none`: no limit.",
    )
    quota_inbox_requests: int | None = Field(
        1_000_000,
        ge=0,
        description="Most requests in the inboxes of an account's schedules; `none`: no limit.",
    )
    quota_api_keys: int | None = Field(
        100, ge=0, description="Most API keys of an account that can be used; `none`: no limit."
    )
    quota_webhooks: int | None = Field(
        20,
        ge=0,
        description="Most webhooks of an account, besides those of batches; `none`: no limit.",
    )
    quota_idempotency_keys: int | None = Field(
        1_000_000,
        ge=0,
        description=(
            "Most idempotency keys of an account that are kept at a time; `none`: no limit."
        ),
    )
    quota_requests_per_second: int | None = Field(
        200, ge=1, description="Most API requests of an account in a second; `none`: no limit."
    )
    quota_changes_per_minute: int | None = Field(
        1_000,
        ge=1,
        description=(
            "Most API requests of an account in a minute that make, change or delete something,"
            " inbox requests excepted; `none`: no limit."
        ),
    )
    min_free_bytes: int = Field(
        1 * GiB,
        ge=0,
        description=(
            "Free space on the disks of the files and the embedded database below which no new work"
            " is taken."
        ),
    )

    @field_validator(
        "quota_open_batches",
        "quota_enqueued_lines",
        "quota_enqueued_tokens",
        "quota_files",
        "quota_storage_bytes",
        "quota_pending_uploads",
        "quota_schedules",
        "quota_waiting_runs",
        "quota_inbox_requests",
        "quota_api_keys",
        "quota_webhooks",
        "quota_idempotency_keys",
        "quota_requests_per_second",
        "quota_changes_per_minute",
        mode="before",
    )
    @classmethod
    def _or_none(cls, value: object) -> object:
        return or_none(value)
