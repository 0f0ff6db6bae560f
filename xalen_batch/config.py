"""All settings, read from environment variables with the prefix `XALEN_`."""

from decimal import Decimal
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlparse

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MiB = 1024 * 1024
GiB = 1024 * MiB


class Settings(BaseSettings):
    """The settings of an operator. Durations are seconds, sizes are bytes."""

    model_config = SettingsConfigDict(
        env_prefix="XALEN_", extra="ignore", frozen=True, allow_inf_nan=False
    )

    # Where things are
    data_dir: Path = Field(
        Path(".xalen"),
        description="Folder of the embedded stores, the uploaded files and `credentials.toml`.",
    )
    database_url: SecretStr | None = Field(
        None,
        description=(
            "PostgreSQL, `postgresql://user:password@host/name`. Unset: `xalen-batch up` starts its"
            " own."
        ),
    )
    migrate_database_url: SecretStr | None = Field(
        None,
        description=(
            "The same database as the role that owns its tables, for `xalen-batch migrate` and `up`"
            " alone. Unset: the role of `XALEN_DATABASE_URL` owns them (docs/security.md)."
        ),
    )
    redis_url: SecretStr | None = Field(
        None,
        description=(
            "Redis or Valkey, `redis://:password@host:6379/0`. Unset: `xalen-batch up` starts its"
            " own."
        ),
    )
    storage_url: str | None = Field(
        None,
        description=(
            "Object storage of input files, `file:///path`. Unset: `files/` in the data folder."
        ),
    )
    catalog: Path | None = Field(
        None, description="TOML file that adds to and overrides the built-in model catalog."
    )

    # The API
    host: str = Field("127.0.0.1", description="Address the API listens on.")
    port: int = Field(8080, ge=0, le=65535, description="Port the API listens on.")
    max_file_bytes: int = Field(200 * MiB, gt=0, description="Largest upload.")
    max_batch_lines: int = Field(50_000, gt=0, description="Most requests in one batch.")
    max_line_bytes: int = Field(8 * MiB, gt=0, description="Longest line of an input file.")
    max_reported_errors: int = Field(
        1_000, gt=0, description="Validation errors kept for one batch."
    )
    max_json_bytes: int = Field(1 * MiB, gt=0, description="Largest JSON request body of the API.")
    max_inbox_bytes: int = Field(
        16 * MiB, gt=0, description="Largest body of requests sent to a schedule's inbox."
    )
    held_bytes: int = Field(
        256 * MiB,
        gt=0,
        description=(
            "Most bytes of request bodies, and again of answers that clients have not read, that"
            " one API process holds; an account may hold a quarter of those that are free. At least"
            " five times the largest body."
        ),
    )
    file_retention: int = Field(
        30 * 86_400, gt=0, description="Life of a batch input file that names no other."
    )
    row_retention: Annotated[int, Field(ge=0)] | Literal["forever"] = Field(
        7 * 86_400,
        description=(
            "How long lines of sealed batches stay rows of `results`, for SQL, from the end of the"
            " day (UTC) that created the batch, or `forever`. Downloads need no rows."
        ),
    )
    run_retention: Annotated[int, Field(ge=0)] | Literal["forever"] = Field(
        400 * 86_400, description="How long ended runs of schedules are kept."
    )
    audit_retention: Annotated[int, Field(ge=90 * 86_400)] | Literal["forever"] = Field(
        "forever", description="How long the audit log is kept; at least 90 days."
    )
    idempotency_retention: int = Field(
        7 * 86_400, ge=86_400, description="How long an Idempotency-Key replays its answer."
    )
    failed_auth_per_minute: int = Field(
        60,
        gt=0,
        le=1_000_000,
        description=(
            "Requests without a valid key that one client address may send in a minute before it is"
            " answered 429."
        ),
    )
    trusted_proxies: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description=(
                "Addresses or networks, separated by commas, of proxies whose `X-Forwarded-For`"
                " tells the client's address. Empty: none."
            )
        ),
    ] = ()
    max_connections: int = Field(
        800,
        gt=0,
        description=(
            "Most open connections of one API process. At that many, the one that has rested"
            " longest makes way."
        ),
    )
    pool_size: int = Field(40, gt=0, description="Most database connections of one process.")

    long_requests: int = Field(
        12,
        gt=0,
        description=(
            "Most requests that take long (estimates, changes of schedules, large inbox bodies) at"
            " a time of one API process."
        ),
    )
    long_requests_per_account: int = Field(
        4, gt=0, description="Most of them of one account; others have the rest."
    )

    # Quotas of an account in one mode, unless an operator gave it others (docs/limits.md)
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
            "Most bytes of an account's files and of the requests in its inboxes; `none`: no limit."
        ),
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

    # Schedules
    schedule_min_interval: int = Field(
        300, ge=60, description="Least time between two fires of a schedule."
    )
    schedule_waiting_runs: int = Field(
        200, ge=100, description="Most runs of one schedule that wait to start."
    )
    drop_roots: Annotated[
        tuple[Path, ...],
        NoDecode,
        Field(
            description=(
                "Folders, separated by commas, below which a schedule's source may name a local"
                " folder; every account may read all that is in them. Empty: no local folders."
            )
        ),
    ] = ()

    # Money
    batch_discount: Annotated[
        Decimal, Field(ge=0, le=1, description="Share taken off the list price of a batch.")
    ] = Decimal("0.5")

    # Workers
    worker_slots: int = Field(
        32, gt=0, description="Tasks that one worker process overlaps on its event loop."
    )
    worker_processes: int = Field(
        1, gt=0, description="Worker processes that `xalen-batch up` starts."
    )
    validation_processes: int = Field(
        2,
        ge=0,
        description=(
            "Processes in which a worker, or the API for an estimate, reads an input file of more"
            " than 16 MiB. 0: it reads it by itself."
        ),
    )
    task_lines: int = Field(
        1_000,
        gt=0,
        description="Most lines in one task; a worker takes as many of them as it has room for.",
    )
    task_bytes: int = Field(
        4 * MiB,
        gt=0,
        description="Most input bytes in one task (one longer line still makes a task).",
    )
    lease: float = Field(60.0, gt=1, description="How long a silent worker keeps its task.")
    poll_interval: float = Field(
        1.0, gt=0, description="Pause between a worker's looks into the database for work."
    )
    tick_interval: float = Field(15.0, gt=0, description="Pause between two sweeps sent by beat.")
    worker_bytes: int = Field(
        256 * MiB,
        ge=32 * MiB,
        description=(
            "Most bytes of requests and answers that one worker process holds: a half for answers,"
            " which are read more slowly while it is used up, a quarter for requests, the rest for"
            " copies of them (docs/limits.md)."
        ),
    )
    flush_lines: int = Field(
        1_000, gt=0, description="Outcomes that a task records in one transaction, at most."
    )
    flush_interval: float = Field(
        0.5, gt=0, description="Longest time an outcome waits to be recorded."
    )
    health_file: Path | None = Field(
        None,
        description=(
            "File that a worker touches whenever it has looked into the database, for health"
            " checks."
        ),
    )
    shutdown_grace: float = Field(
        20.0,
        ge=0,
        description=(
            "Time that requests in flight get to finish when the API or a worker stops: of clients,"
            " and to models."
        ),
    )
    shutdown_delay: float = Field(
        0.0,
        ge=0,
        description=(
            "Time for which a stopping API still takes connections while `/readyz` answers 503. For"
            " balancers that check health: longer than they need to notice."
        ),
    )

    # Requests to model backends
    request_timeout: float = Field(
        600.0, gt=0, description="Total time of one request to a backend."
    )
    connect_timeout: float = Field(
        10.0, gt=0, description="Time to open a connection to a backend."
    )
    answer_max_bytes: int = Field(8 * MiB, gt=0, description="Longest answer taken from a backend.")
    max_attempts: int = Field(5, gt=0, description="Attempts at one line before it fails.")
    retry_base: float = Field(
        0.5, gt=0, description="First retry's longest pause; doubles per attempt, full jitter."
    )
    retry_cap: float = Field(
        30.0, gt=0, description="Longest pause before a retry that the backend did not ask for."
    )
    retry_after_cap: float = Field(
        120.0, gt=0, description="Longest `Retry-After` that is obeyed as it is."
    )
    circuit_failures: int = Field(
        20,
        gt=0,
        description=(
            "Failures of a batch in a row after which its backend is left alone for a while, unless"
            " others are answered."
        ),
    )
    circuit_pause: float = Field(15.0, gt=0, description="How long such a backend is left alone.")
    circuit_patience: float = Field(
        4 * 3_600.0,
        ge=0,
        description=(
            "How long a backend that answers nothing but failures costs no line. After that lines"
            " fail, few at first."
        ),
    )

    # Logs
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe event that is written."
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="How an event is written."
    )

    @field_validator("database_url", "migrate_database_url")
    @classmethod
    def _is_postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(
            ("postgresql://", "postgresql+psycopg://", "postgres://")
        ):
            raise ValueError("must be a PostgreSQL address, postgresql://user:password@host/name")
        return value

    @field_validator(
        "quota_open_batches",
        "quota_enqueued_lines",
        "quota_enqueued_tokens",
        "quota_files",
        "quota_storage_bytes",
        "quota_schedules",
        "quota_waiting_runs",
        "quota_inbox_requests",
        "quota_api_keys",
        "quota_idempotency_keys",
        "quota_requests_per_second",
        "quota_changes_per_minute",
        mode="before",
    )
    @classmethod
    def _or_none(cls, value: object) -> object:
        return None if value in ("none", "") else value

    @field_validator("storage_url")
    @classmethod
    def _is_folder(cls, value: str | None) -> str | None:
        if value and not value.startswith("file:///"):
            raise ValueError(
                "must be a local folder, file:///path; other object storage is not supported yet"
            )
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            try:
                ip_network(proxy)
            except ValueError:
                raise ValueError(
                    f"{proxy} is neither an address nor a network, such as 10.0.0.7 or 10.0.0.0/24"
                ) from None
        return proxies

    @field_validator("held_bytes")
    @classmethod
    def _has_room(cls, value: int, others: ValidationInfo) -> int:
        largest = max(others.data.get("max_inbox_bytes", 0), others.data.get("max_json_bytes", 0))
        if value < 5 * largest:
            raise ValueError(
                f"must be at least {5 * largest}, five times the largest body (max_inbox_bytes,"
                " max_json_bytes)"
            )
        return value

    @field_validator("drop_roots", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()]
            if isinstance(value, str)
            else value
        )

    @field_validator("drop_roots")
    @classmethod
    def _is_apart(cls, roots: tuple[Path, ...], others: ValidationInfo) -> tuple[Path, ...]:
        """Refuse drop roots that hold the server's own files, since all accounts may read them."""
        data: Path = others.data.get("data_dir", Path()).resolve()
        address = others.data.get("storage_url")
        stored = Path(unquote(urlparse(address).path)).resolve() if address else data / "files"
        for root in roots:
            if not root.is_absolute():
                raise ValueError(
                    "must be absolute folders, separated by commas: /srv/drops,/data/exports"
                )
            found = root.resolve()
            if (
                data.is_relative_to(found)
                or stored.is_relative_to(found)
                or found.is_relative_to(stored)
            ):
                raise ValueError(
                    f"{root} holds the server's own files, or is one of their folders; name a"
                    f" folder apart from {data} and {stored}"
                )
        return roots

    @property
    def storage(self) -> str:
        """The storage address in force."""
        return self.storage_url or (self.data_dir.absolute() / "files").as_uri()


@cache
def settings() -> Settings:
    """The settings of this process, read from the environment once."""
    return Settings()
