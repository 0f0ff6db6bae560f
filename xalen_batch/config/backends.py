"""Settings of requests to model backends."""

from pydantic import BaseModel, Field

from xalen_batch.config.values import MiB


class Backends(BaseModel):
    """Time, size and attempts of a request to a model backend, and its circuit breaker."""

    request_timeout: float = Field(
        600.0, gt=0, description="Total time of one request to a backend."
    )
    connect_timeout: float = Field(
        10.0, gt=0, description="Time to open a connection to a backend."
    )
    answer_max_bytes: int = Field(
        8 * MiB,
        gt=0,
        description=(
            "Longest answer taken from a backend. Of embeddings 96 KiB for each input if that is"
            " more, at most a quarter of `XALEN_WORKER_BYTES`."
        ),
    )
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
