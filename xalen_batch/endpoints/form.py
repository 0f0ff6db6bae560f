"""The form of a request: its fields that we read, typed, and the words for a body without it.

Fields that a form does not list are not checked: they reach the backend unchanged.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import Meta

from xalen_batch.endpoints.tokens import PieceCounter
from xalen_batch.endpoints.window import Window

# The range of a signed 64-bit integer. Some parsers read a larger one as a float, or refuse it.
LEAST_INT, MOST_INT = -(2**63), 2**63 - 1
Count = Annotated[int, Meta(ge=1, le=MOST_INT)]
# A text that the model reads from its start on, in pieces. A piece is text, or JSON as bytes.
Prompt = Sequence[str | bytes]


class InvalidBody(NamedTuple):
    """The error of a body that its endpoint does not take. `param` is a path in the line."""

    param: str
    message: str


class Form(Protocol):
    """A checked request."""

    @property
    def model(self) -> str: ...

    @property
    def choices(self) -> int:
        """Answers that it asks for; 0 if its answer has no output tokens."""

    @property
    def longest_answer(self) -> int | None:
        """The most tokens of one answer; None if the request sets no limit."""

    @property
    def cacheable(self) -> Prompt:
        """The prompt by which a prefix cache keys it; empty if no other line can share a prefix."""

    @property
    def inputs(self) -> int:
        """Texts that it asks to embed; 0 at other endpoints."""

    @property
    def live_only(self) -> InvalidBody | None:
        """The parameter of it that only a live call may have; None: a batch may run it."""

    def input_tokens(self, counter: PieceCounter) -> int:
        """The tokens that the model reads, as `counter` counts a text."""

    def overflow(self, window: Window) -> InvalidBody | None:
        """The part that exceeds the context window; None if all fits, or may fit."""


def lacks(answer: Mapping[str, Any], field: str) -> str | None:
    """The problem of an answer without a list in this field; None: it has one."""
    # Some gateways answer 200 with an error in the body, which must not be billed.
    is_there = isinstance(answer.get(field), list)
    return None if is_there else f"The backend's answer has no `{field}`."


T = TypeVar("T")
_WHERE = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")
# JSON's name of a type by the Python name that msgspec uses.
_WORDS = {"str": "string", "int": "whole number", "float": "number", "bool": "boolean"}
_ALWAYS = {
    "model": "Name a model of the catalog.",
    "stream": "Leave it out: a batch has no stream.",
}
# The key of a form's field that no body has, as only `fit` sets it.
OURS = "xalen:ours"
STREAM = InvalidBody(
    "body.stream", "A batch has no stream to send. Leave stream out, or set it to false."
)


def typed(body: Mapping[str, Any], form: type[T], hints: Mapping[str, str]) -> T | InvalidBody:
    """A body as this form, or its first error. `hints`: the remedy by the name of a field."""
    try:
        return msgspec.convert(body, form)
    except msgspec.ValidationError as error:
        return _invalid_body(str(error), {**_ALWAYS, **hints})


def _invalid_body(error: str, hints: Mapping[str, str]) -> InvalidBody:
    """A msgspec error, reworded for the author of the body.

    msgspec names types and limits, and never quotes a value.
    """
    found = _WHERE.fullmatch(error)
    what, path = (found["what"], found["path"] or "") if found else (error, "")
    missing = _MISSING.fullmatch(what)
    if missing:
        return InvalidBody(
            f"body{path}.{missing[1]}",
            f"`{missing[1]}` is missing. {hints.get(missing[1], 'Add it.')}",
        )
    name = re.split(r"[.\[]", path.lstrip("."))[0]
    expected = re.sub(r"\b(str|int|float|bool)\b", lambda word: _WORDS[word[0]], what)
    return InvalidBody(
        f"body{path}", f"{expected}. {hints.get(name, 'Change its value or leave it out.')}"
    )
