"""Types of what users send, wherever they send it: text that a column can hold, notes, lives of files."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, WithJsonSchema

EARLIEST_YEAR, LATEST_YEAR = 1970, 2999
DAY = 86_400
SHORTEST_LIFE, LONGEST_LIFE = 3_600, 30 * DAY


def _storable(text: str) -> str:
    """JSON can say what neither UTF-8 nor a text column can hold."""
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("should contain neither NUL nor lone surrogates")
    return text


def _plausible(time: datetime) -> datetime:
    """No arithmetic with it, and no zone, leaves the calendar."""
    if not EARLIEST_YEAR <= time.year <= LATEST_YEAR:
        raise ValueError(f"should be in the years {EARLIEST_YEAR} to {LATEST_YEAR}")
    return time


# After constraints of length, not before them: they are of what is left when blanks are stripped.
STORABLE = AfterValidator(_storable)
Text = Annotated[str, STORABLE]
# A local time without an offset, a date and Unix seconds are times too, so the description cannot say `date-time`.
Time = Annotated[datetime, AfterValidator(_plausible), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}]})]
LONGEST_KEY, LONGEST_VALUE, MOST_NOTES = 64, 512, 16
MetadataKey = Annotated[str, StringConstraints(max_length=LONGEST_KEY), STORABLE]
MetadataValue = Annotated[str, StringConstraints(max_length=LONGEST_VALUE), STORABLE]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MOST_NOTES)]


class ExpiresAfter(BaseModel):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=SHORTEST_LIFE, le=LONGEST_LIFE, description="Counted from the creation of the output file.")
