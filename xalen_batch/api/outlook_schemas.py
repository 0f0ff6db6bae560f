"""Schemas of the outlook of a batch, which GET of one batch shows and lists leave out."""

from datetime import datetime
from typing import Literal, Self

from pydantic import BaseModel, Field

from xalen_batch.batches.outlook import Basis, Outlook


class LineErrorsObject(BaseModel):
    """Lines that ended without success so far, by code, with one of them as an example."""

    code: str = Field(
        description="An error code, or `http_` and a status, as on the invoice.",
        examples=["http_503"],
    )
    count: int
    line: int | None = Field(description="The number of one such line; null: none was found.")
    custom_id: str | None


class OutlookObject(BaseModel):
    """When a batch in progress will probably end, and what is ahead of it."""

    object: Literal["batch.outlook"] = "batch.outlook"
    lines_left: int
    lines_ahead: int = Field(
        description=(
            "Waiting lines of your batches of the same model that have an earlier deadline. Lines"
            " of other accounts are not counted: accounts take turns."
        )
    )
    basis: Basis = Field(
        description=(
            "Of the estimate. `measured`: the lines that ended between the last two measurements."
            " `average`: all lines that have ended. `none`: no line has ended, so there is none."
        )
    )
    lines_per_second: float | None
    measured_seconds: float | None = Field(description="The time that this pace was measured for.")
    estimated_end: int | None = Field(description="Unix seconds, at that pace.")
    is_late: bool = Field(description="At this pace it will miss its deadline, `expires_at`.")
    at_risk_since: int | None = Field(
        description="When the event `xalen.batch.at_risk` was recorded."
    )
    errors: list[LineErrorsObject] = Field(description="The ten most frequent codes so far.")

    @classmethod
    def of(cls, found: Outlook | None) -> Self | None:
        if found is None:
            return None
        return cls(
            lines_left=found.lines_left,
            lines_ahead=found.lines_ahead,
            basis=found.basis,
            lines_per_second=_rounded(found.lines_per_second),
            measured_seconds=_rounded(found.seconds),
            estimated_end=_seconds(found.estimated_end),
            is_late=found.is_late,
            at_risk_since=_seconds(found.at_risk_since),
            errors=[
                LineErrorsObject(
                    code=errors.code,
                    count=errors.count,
                    line=errors.line,
                    custom_id=errors.custom_id,
                )
                for errors in found.errors
            ],
        )


def _seconds(time: datetime | None) -> int | None:
    return None if time is None else int(time.timestamp())


def _rounded(number: float | None) -> float | None:
    """Three significant digits: an estimate has no more."""
    return None if number is None else float(f"{number:.3g}")
