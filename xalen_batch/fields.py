"""Types of what users send, wherever they send it: text that a column can hold, notes, lives of
files.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from xalen_batch.errors import QUOTED_CHARS, InvalidRequest

# How alike two names are, of 1, that differ by a slip of the finger; and letters from which a part
# of a name stands for all of it.
SAME_NAME, LONG_NAME = 0.9, 9
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
# A local time without an offset, a date and Unix seconds are times too, so the description cannot
# say `date-time`.
Time = Annotated[
    datetime,
    AfterValidator(_plausible),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}]}),
]
LONGEST_KEY, LONGEST_VALUE, MOST_NOTES = 64, 512, 16
MetadataKey = Annotated[str, StringConstraints(max_length=LONGEST_KEY), STORABLE]
MetadataValue = Annotated[str, StringConstraints(max_length=LONGEST_VALUE), STORABLE]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MOST_NOTES)]


def meant(name: str, known: Iterable[str]) -> str | None:
    """The known field that an unknown name is another spelling of: `inputFileId`,
    `expires_after.seconds`, `completion_windw`.

    None for a name that is like none, such as the fields that other gateways add.
    """
    spelt = {_letters(path): path for path in known}
    letters = _letters(name)
    close = get_close_matches(letters, spelt, n=1, cutoff=SAME_NAME)
    part = [path for path in spelt if len(letters) >= LONG_NAME and letters in path]
    return next((spelt[path] for path in (*close, *part)), None)


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name[:100])).lower()


class Lenient(BaseModel):
    """A request whose unknown fields are ignored, since OpenAI's clients and gateways send some;
    those that misspell a known one are refused.
    """

    @model_validator(mode="before")
    @classmethod
    def _refuse_misspelt(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if name not in cls.model_fields and (field := meant(name, paths(cls))):
                raise misspelt(name, field)
        return value


def misspelt(name: str, field: str) -> InvalidRequest:
    """The error of a field that we know by another name."""
    message = f"Unknown parameter: `{name[:QUOTED_CHARS]}`. Did you mean `{field}`?"
    return InvalidRequest(message, param=name[:QUOTED_CHARS], code="unknown_parameter")


def paths(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """The fields of a model and of those in it, as `output_expires_after.seconds`."""
    for name, field in model.model_fields.items():
        yield above + name
        for kind in get_args(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from paths(kind, f"{above}{name}.")


class ExpiresAfter(BaseModel):
    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: int = Field(
        ge=SHORTEST_LIFE,
        le=LONGEST_LIFE,
        description="Counted from the creation of the output file.",
    )
