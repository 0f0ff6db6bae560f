"""`POST /v1/batches/estimate`."""

from typing import Literal, NotRequired, TypedDict

from openai import BaseModel
from openai.types.batch import Errors


class EstimateFields(TypedDict):
    input_file_id: str
    # Unset: that of the file's first line.
    endpoint: NotRequired[str]


class ModelEstimate(BaseModel):
    model: str
    lines: int
    input_tokens: int
    max_input_tokens: int
    expected_output_tokens: int
    max_output_tokens: int
    expected_cost: str
    max_cost: str


class Estimate(BaseModel):
    """What a file would cost at batch price, and its faulty lines. Amounts are exact USD."""

    object: Literal["batch.estimate"]
    valid: bool
    """Whether a batch of this file would run."""
    endpoint: str | None
    lines: int
    error_count: int
    """All faults; `errors` has the first of them."""
    errors: Errors
    models: list[ModelEstimate]
    currency: str
    discount_rate: str
    """Share of the list price that is taken off."""
    expected_cost: str
    max_cost: str
