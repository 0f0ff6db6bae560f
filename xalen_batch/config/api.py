"""Settings of the API."""

import re
from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from xalen_batch.config.values import GiB, MiB, or_none, parted

# A browser compares origins as texts, and sends them in this form.
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


class Api(BaseModel):
    """Bounds of requests, of batches and of answers; how long things are kept."""

    host: str = Field("127.0.0.1", description="Address the API listens on.")
    port: int = Field(8080, ge=0, le=65535, description="Port the API listens on.")
    max_file_bytes: int = Field(200 * MiB, gt=0, description="Largest file of one request.")
    max_upload_bytes: int = Field(8 * GiB, gt=0, description="Largest file uploaded in parts.")
    max_batch_lines: int = Field(50_000, gt=0, description="Most requests in one batch.")
    max_batch_inputs: int | None = Field(
        50_000,
        gt=0,
        description="Most inputs of embeddings, over all lines of one batch; `none`: no limit.",
    )
    max_line_bytes: int = Field(8 * MiB, gt=0, description="Longest line of an input file.")
    max_reported_errors: int = Field(
        1_000, gt=0, description="Validation errors kept for one batch."
    )
    pdf_fonts: str = Field(
        "",
        description=(
            "Font files for further scripts in PDFs, such as Chinese, separated by colons (TrueType"
            " or OpenType)."
        ),
    )
    live: Literal["on", "off"] = Field(
        "on", description="Whether the API answers live calls, or 404."
    )
    console: Literal["on", "off"] = Field(
        "off",
        description="Whether the API serves the console, pages for a browser; `up` sets `on`.",
    )
    flex_wait: float = Field(
        600.0,
        gt=0,
        description="Time for which a call with `service_tier: flex` holds its connection.",
    )
    max_json_bytes: int = Field(1 * MiB, gt=0, description="Largest JSON request body of the API.")
    max_inbox_bytes: int = Field(
        16 * MiB,
        gt=0,
        description="Largest body with requests: of a batch, or for an inbox.",
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
            "How long lines and tasks of sealed batches stay rows of `results` and `tasks`, for"
            " SQL, from the end of the day (UTC) that created the batch, or `forever`. Downloads"
            " need no rows."
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
    cors_origins: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description=(
                "Origins, separated by commas, whose pages may call the API from a browser, such as"
                " `https://app.example.com`; `*`: all. Empty: none."
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

    @field_validator("max_batch_inputs", mode="before")
    @classmethod
    def _inputs_or_none(cls, value: object) -> object:
        return or_none(value)

    @field_validator("trusted_proxies", "cors_origins", mode="before")
    @classmethod
    def _split_lists(cls, value: object) -> object:
        return parted(value)

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

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin} is not an origin. Write it as browsers send it: scheme, host and"
                    " port in lower case, without a path, such as https://app.example.com or"
                    " http://localhost:3000"
                )
        return origins

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
