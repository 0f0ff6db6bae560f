"""`/v1/embeddings`: its requests, and the usage of its answers."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

from xalen_batch.endpoints import token_text, tokens, usage
from xalen_batch.endpoints.form import Count, InvalidBody, Prompt, lacks, typed
from xalen_batch.endpoints.token_text import TokenText, TokenTexts
from xalen_batch.endpoints.tokens import PieceCounter
from xalen_batch.endpoints.usage import INPUT_KEYS, Usage
from xalen_batch.endpoints.whole import decoded
from xalen_batch.endpoints.window import LEAST_SHARE, Window

# OpenAI's limits of one request.
MOST_INPUTS = 2_048
MOST_TOKENS = 300_000
# Bytes of an input's embedding in an answer, at most: 4,096 numbers of 24 characters.
EMBEDDING_BYTES = 96 * 1024
# Tokens that a model's template adds to an input.
INPUT_ALLOWANCE = 16
_HINTS = {
    "input": 'Send a text such as "Hello", a list of texts, or token ids; none may be empty.',
    "encoding_format": "Use float or base64, or leave it out for float.",
}


class EmbeddingRequest(Struct):
    model: str
    input: TokenTexts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    user: str | None = None

    @property
    def texts(self) -> list[TokenText]:
        return token_text.texts_of(self.input)

    @property
    def choices(self) -> int:
        return 0

    @property
    def longest_answer(self) -> int | None:
        return None

    @property
    def inputs(self) -> int:
        return len(self.texts)

    @property
    def live_only(self) -> InvalidBody | None:
        return None

    @property
    def cacheable(self) -> Prompt:
        return ()

    def input_tokens(self, counter: PieceCounter) -> int:
        return sum(token_text.count(text, counter) for text in self.texts)

    def overflow(self, window: Window) -> InvalidBody | None:
        for index, text in enumerate(self.texts):
            excess = window.overflow_of(text)
            if excess is not None:
                return InvalidBody(
                    "body.input",
                    f"Input {index} has {excess} Shorten it, or cut it in several.",
                )
        return None


def fit(body: dict[str, Any]) -> EmbeddingRequest | InvalidBody:
    """The body with its checked fields typed, or its first error."""
    asked = typed(body, EmbeddingRequest, _HINTS)
    if isinstance(asked, InvalidBody):
        return asked
    return _wrong_input(asked) or asked


def _wrong_input(asked: EmbeddingRequest) -> InvalidBody | None:
    try:
        texts = asked.texts
    except ValueError as error:
        return InvalidBody("body.input", f"The list {error}")
    empty = next((index for index, text in enumerate(texts) if not text), None)
    if empty is not None:
        return InvalidBody("body.input", f"Input {empty} is empty. Leave it out.")
    if len(texts) > MOST_INPUTS:
        return InvalidBody(
            "body.input",
            f"There are {len(texts):,} inputs; the most of one request is {MOST_INPUTS:,}. Send"
            " them in several lines.",
        )
    if sum(token_text.count(text, tokens.most) for text in texts) <= MOST_TOKENS:
        return None
    least = int(asked.input_tokens(tokens.count) * LEAST_SHARE)
    if least <= MOST_TOKENS:
        return None
    return InvalidBody(
        "body.input",
        f"The inputs have at least {least:,} tokens; the most of one request is {MOST_TOKENS:,}."
        " Send them in several lines.",
    )


KEYS = INPUT_KEYS
reported = usage.reported_input


def problem(answer: Mapping[str, Any]) -> str | None:
    """The reason why a 2xx answer is none; None: it is one."""
    return lacks(answer, "data")


def counted(answer: Mapping[str, Any], asked: Mapping[str, Any]) -> Usage:
    """The usage of an answer to a request, as we count it."""
    request = fit(dict(asked))
    read = 0 if isinstance(request, InvalidBody) else request.input_tokens(tokens.count)
    return Usage(read, counted=True)


def allowance(body: bytes) -> int:
    """Input tokens beyond the request's bytes that a report may have: those of templates."""
    request = fit(decoded(body))
    return 0 if isinstance(request, InvalidBody) else INPUT_ALLOWANCE * request.inputs


class _Inputs(Struct):
    input: str | list[msgspec.Raw]


_inputs = msgspec.json.Decoder(_Inputs).decode


def inputs(body: bytes) -> int:
    """The inputs of a request, at most; a list of token ids counts as its length."""
    try:
        given = _inputs(body).input
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The backend refuses the request.
        return 1
    return len(given) if isinstance(given, list) else 1


def answers(body: bytes) -> tuple[int, int | None]:
    """An embedding has no output tokens."""
    return 0, None
