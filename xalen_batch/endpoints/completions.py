"""`/v1/completions`: its requests, and the usage of its answers."""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from xalen_batch.endpoints import token_text, tokens, usage
from xalen_batch.endpoints.form import MOST_INT, STREAM, InvalidBody, Prompt, lacks, typed
from xalen_batch.endpoints.token_text import TokenText, TokenTexts
from xalen_batch.endpoints.tokens import PieceCounter
from xalen_batch.endpoints.usage import CHAT_KEYS, Usage, table
from xalen_batch.endpoints.whole import decoded, whole
from xalen_batch.endpoints.window import Window

_HINTS = {
    "prompt": 'Send a string such as "Once upon a time", a list of strings, or token ids.',
}


class CompletionRequest(Struct):
    """A completion. `texts` are its prompts, one by one; each gets answers of its own."""

    model: str
    prompt: TokenTexts
    stream: bool | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=MOST_INT)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    echo: bool | None = None

    @property
    def texts(self) -> list[TokenText]:
        return token_text.texts_of(self.prompt)

    @property
    def choices(self) -> int:
        return len(self.texts) * max(self.n or 1, self.best_of or 1)

    @property
    def longest_answer(self) -> int | None:
        return self.max_tokens

    @property
    def inputs(self) -> int:
        return 0

    @property
    def live_only(self) -> InvalidBody | None:
        return STREAM if self.stream else None

    @property
    def cacheable(self) -> Prompt:
        return [self.prompt] if isinstance(self.prompt, str) else ()

    def input_tokens(self, counter: PieceCounter) -> int:
        return sum(token_text.count(text, counter) for text in self.texts)

    def overflow(self, window: Window) -> InvalidBody | None:
        for index, text in enumerate(self.texts):
            excess = window.overflow_of(text)
            if excess is not None:
                return InvalidBody("body.prompt", f"Prompt {index} has {excess} Shorten it.")
        return None


def fit(body: dict[str, Any]) -> CompletionRequest | InvalidBody:
    """The body with its checked fields typed, or its first error."""
    asked = typed(body, CompletionRequest, _HINTS)
    if isinstance(asked, InvalidBody):
        return asked
    try:
        token_text.texts_of(asked.prompt)
    except ValueError as error:
        return InvalidBody("body.prompt", f"The list {error}")
    if asked.best_of is not None and asked.best_of < (asked.n or 1):
        return InvalidBody("body.best_of", "best_of is lower than n. Raise it, or leave it out.")
    return asked


KEYS = CHAT_KEYS
reported = usage.reported


def problem(answer: Mapping[str, Any]) -> str | None:
    """The reason why a 2xx answer is none; None: it is one."""
    return lacks(answer, "choices")


def counted(answer: Mapping[str, Any], asked: Mapping[str, Any]) -> Usage:
    """The usage of an answer to a request, as we count it."""
    request, choices = fit(dict(asked)), answer.get("choices")
    read = 0 if isinstance(request, InvalidBody) else request.input_tokens(tokens.count)
    texts = [table(choice).get("text") for choice in choices] if isinstance(choices, list) else []
    written = sum(tokens.count(text) for text in texts if isinstance(text, str))
    return Usage(read, written, counted=True)


def allowance(body: bytes) -> int:
    """Input tokens beyond the request's bytes that a report may have."""
    return 0


def answers(body: bytes) -> tuple[int, int | None]:
    """The choices that a request asks for, and the most tokens of one; None: it sets no limit."""
    request = fit(whole(decoded(body)))
    # The backend refuses a request of another form.
    return (1, None) if isinstance(request, InvalidBody) else (request.choices, request.max_tokens)
