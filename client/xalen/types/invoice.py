"""Invoices of batches, and statements of months. Amounts are exact USD, as strings."""

from typing import Literal

from openai import BaseModel


class InvoiceSchedule(BaseModel):
    id: str
    name: str | None
    """The name that the schedule had when its run was made."""


class InvoiceLine(BaseModel):
    kind: Literal["usage", "discount", "not_billed"]
    description: str
    model: str | None
    component: str | None
    quantity: str | None
    """Tokens of a component; requests, if `component` is None."""
    unit_price: str | None
    """USD per million tokens; of a discount its rate."""
    reason: str | None
    answered_by: str | None
    """`openai` (a model server) or `simulated`."""
    amount: str


class Invoice(BaseModel):
    """The invoice of a batch that has ended: exact, never rounded, never changed."""

    id: str
    object: Literal["invoice"]
    status: Literal["issued"]
    livemode: bool
    payable: bool
    """Whether it is real money; the month's statement is what is paid."""
    account_id: str
    batch_id: str
    schedule: InvoiceSchedule | None
    currency: str
    issued_at: int
    lines: list[InvoiceLine]
    subtotal: str
    discount: str
    total: str


class StatementLine(BaseModel):
    kind: Literal["batch", "credit", "rounding"]
    description: str
    invoice_id: str | None
    credit_note_id: str | None = None
    """Of a line of kind `credit`."""
    reason: str | None
    amount: str


class Statement(BaseModel):
    """The sum of a month's batch invoices, less credit notes, rounded once."""

    id: str | None
    """None for a draft."""
    object: Literal["statement"]
    status: Literal["issued", "draft"]
    month: str
    livemode: bool
    payable: bool
    account_id: str
    currency: str
    issued_at: int | None
    lines: list[StatementLine]
    exact_total: str | None
    """The sum of all lines before rounding. None on the pages of a draft before the last."""
    rounding: str | None
    total: str | None
    has_more: bool
    """Whether the statement has lines after these."""


class CreditNote(BaseModel):
    """An amount that is given back of what a batch was billed."""

    id: str
    object: Literal["credit_note"]
    livemode: bool
    account_id: str
    batch_id: str
    amount: str
    """Positive; at most what the batch was billed."""
    share: str | None
    """The share of the invoice's total, if it was one."""
    currency: str
    reason: str
    created_at: int
    statement_id: str | None
    """None until the statement with it is issued."""
