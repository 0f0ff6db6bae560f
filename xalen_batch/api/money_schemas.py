"""Schemas of estimates, invoices, statements and charges. Those of the first three are for the
OpenAPI description only: the services render these objects themselves.

Amounts are exact, in USD, as strings such as `0.0000123`.
"""

from typing import Literal, Self

from pydantic import BaseModel, Field

from xalen_batch import money
from xalen_batch.api.schemas import BatchErrors, Identified
from xalen_batch.results.explain import Charge, Component

Amount = str


class ModelEstimateObject(BaseModel):
    model: str
    lines: int
    input_tokens: int
    max_input_tokens: int
    expected_output_tokens: int
    max_output_tokens: int
    expected_cost: Amount
    max_cost: Amount


class EstimateObject(BaseModel):
    """What a file would cost at batch price, and its faulty lines.

    Lines and costs are those of the good lines.
    """

    object: Literal["batch.estimate"]
    valid: bool = Field(description="Whether a batch of this file would run.")
    endpoint: str | None = Field(
        description="The endpoint of the file's first line, if the request named none."
    )
    lines: int
    error_count: int = Field(description="All faults; `errors` lists the first of them.")
    errors: BatchErrors
    models: list[ModelEstimateObject]
    currency: str
    discount_rate: str = Field(description="Share of the list price that is taken off.")
    expected_cost: Amount
    max_cost: Amount


class InvoiceSchedule(BaseModel):
    id: str
    name: str | None = Field(description="The name that the schedule had when its run was made.")


class InvoiceLineObject(BaseModel):
    kind: Literal["usage", "discount", "not_billed"]
    description: str
    model: str | None
    component: Literal["input", "cached_input", "output"] | None
    quantity: str | None = Field(
        description="Tokens of a component; requests, if `component` is null."
    )
    unit_price: str | None = Field(description="USD per million tokens; of a discount its rate.")
    reason: str | None = Field(
        description=(
            "Why the line is not billed, or `usage_counted` for tokens that were counted by"
            " xalen-batch."
        )
    )
    answered_by: str | None = Field(description="`openai` (a model server) or `simulated`.")
    amount: Amount


class InvoiceObject(BaseModel):
    """The invoice of a batch that has ended: exact, never rounded, never changed."""

    id: str
    object: Literal["invoice"]
    status: Literal["issued"]
    livemode: bool
    payable: bool = Field(
        description="Whether it is real money; the month's statement is what is paid."
    )
    account_id: str
    batch_id: str
    schedule: InvoiceSchedule | None
    currency: str
    issued_at: int
    lines: list[InvoiceLineObject]
    subtotal: Amount
    discount: Amount
    total: Amount


class StatementLineObject(BaseModel):
    kind: Literal["batch", "credit", "rounding"]
    description: str
    invoice_id: str | None
    credit_note_id: str | None
    reason: str | None = Field(
        description="`usage_counted` if the invoice has tokens that were counted by xalen-batch."
    )
    amount: Amount


class StatementObject(BaseModel):
    """The sum of a month's batch invoices, less credit notes, rounded once."""

    id: str | None = Field(description="Null for a draft.")
    object: Literal["statement"]
    status: Literal["issued", "draft"]
    month: str = Field(examples=["2026-11"])
    livemode: bool
    payable: bool
    account_id: str
    currency: str
    issued_at: int | None
    lines: list[StatementLineObject]
    exact_total: Amount | None = Field(
        description=(
            "The sum of all lines before rounding. Of a draft, this and the next two are null while"
            " `has_more` is true."
        )
    )
    rounding: Amount | None
    total: Amount | None
    has_more: bool = Field(description="Whether the statement has lines after these.")


class CreditNoteObject(Identified):
    """An amount that is given back of what a batch was billed. It never changes."""

    object: Literal["credit_note"]
    livemode: bool
    account_id: str
    batch_id: str
    amount: Amount = Field(description="Positive; at most what the batch was billed.")
    share: str | None = Field(description="The share of the invoice's total, if it was one.")
    currency: str
    reason: str
    created_at: int
    statement_id: str | None = Field(description="Null until the statement with it is issued.")


class ChargeComponent(BaseModel):
    component: str
    tokens: int
    unit_price: str | None = Field(
        description="List price, USD per million tokens; null: there is none, so 0 is billed."
    )
    amount: str | None = Field(description="At list price, exact.")

    @classmethod
    def of(cls, component: Component) -> Self:
        return cls(
            component=component.name,
            tokens=component.tokens,
            unit_price=None if component.price is None else money.render(component.price),
            amount=None if component.amount is None else money.render(component.amount),
        )


class LineCharge(BaseModel):
    """The line's part of the invoice: `amount` = `subtotal` × (1 - `discount_rate`), exactly."""

    currency: str = money.CURRENCY
    components: list[ChargeComponent] | None
    subtotal: str | None
    discount_rate: str
    amount: str

    @classmethod
    def of(cls, charge: Charge | None) -> Self | None:
        if charge is None:
            return None
        components = charge.components
        return cls(
            components=components and [ChargeComponent.of(each) for each in components],
            subtotal=None if charge.subtotal is None else money.render(charge.subtotal),
            discount_rate=f"{charge.discount_rate:f}",
            amount=money.render(charge.amount),
        )
