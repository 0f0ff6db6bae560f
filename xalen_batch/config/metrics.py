"""Settings of metrics."""

from pydantic import BaseModel, Field, SecretStr


class Metrics(BaseModel):
    """Where a process serves metrics, and who may read them."""

    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description=(
            "Port on which this process serves Prometheus metrics at `/metrics`. `xalen-batch up`"
            " gives it to the API, and the ports after it to its workers. Unset: none."
        ),
    )
    metrics_host: str = Field("127.0.0.1", description="Address of that port.")
    metrics_token: SecretStr | None = Field(
        None,
        min_length=16,
        description=(
            "Bearer token with which the API answers `/metrics` and `/v1/demand` on its own port."
            " Unset: both answer 404."
        ),
    )
