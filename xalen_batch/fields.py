"""Types of request fields that several routes share: text, times, metadata, lifetimes of files."""

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

# Least similarity, of 1, of a misspelt name; and letters from which a part of a known name counts
# as misspelling it.
SAME_NAME, LONG_NAME = 0.9, 9
EARLIEST_YEAR, LATEST_YEAR = 1970, 2999
DAY = 86_400
SHORTEST_LIFE, LONGEST_LIFE = 3_600, 30 * DAY


def _storable(text: str) -> str:
    """Refuse NUL, which no text column can hold, and lone surrogates, which UTF-8 cannot encode."""
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("should contain neither NUL nor lone surrogates")
    return text


def _plausible(time: datetime) -> datetime:
    """Refuse years from which arithmetic or another zone could leave Python's calendar."""
    if not EARLIEST_YEAR <= time.year <= LATEST_YEAR:
        raise ValueError(f"should be in the years {EARLIEST_YEAR} to {LATEST_YEAR}")
    return time


# In annotations it comes after length constraints, which apply once blanks are stripped.
STORABLE = AfterValidator(_storable)
Text = Annotated[str, STORABLE]
# Not `date-time` in the API description: a local time without an offset, a date and Unix seconds
# are also accepted.
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
    """The known field that a name misspells: `inputFileId`, `completion_windw`, `seconds`.

    None for a name that is similar to no field, such as the fields that gateways add.
    """
    by_letters = {_letters(path): path for path in known}
    letters = _letters(name)
    close = get_close_matches(letters, by_letters, n=1, cutoff=SAME_NAME)
    if close:
        return by_letters[close[0]]
    if len(letters) >= LONG_NAME:
        for path in by_letters:
            if letters in path:
                return by_letters[path]
    return None


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name[:100])).lower()


class Lenient(BaseModel):
    """A request body whose unknown fields are ignored, unless they misspell a known field.

    OpenAI's clients and gateways send fields that we do not know.
    """

    @model_validator(mode="before")
    @classmethod
    def _refuse_misspelt(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if name in cls.model_fields:
                continue
            field = meant(name, paths(cls))
            if field is not None:
                raise misspelt(name, field)
        return value


def misspelt(name: str, field: str) -> InvalidRequest:
    """The error for a misspelt field."""
    message = f"Unknown parameter: `{name[:QUOTED_CHARS]}`. Did you mean `{field}`?"
    return InvalidRequest(message, param=name[:QUOTED_CHARS], code="unknown_parameter")


def paths(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """The fields of a model and of its nested models, as `output_expires_after.seconds`."""
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
