"""`/v1/responses`: its requests, and the usage of its answers."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field

from xalen_batch.endpoints import chat, tokens, usage
from xalen_batch.endpoints.form import OURS, STREAM, Count, InvalidBody, Prompt, lacks, typed
from xalen_batch.endpoints.responses_chat import InvalidItem, NotChat, to_chat
from xalen_batch.endpoints.tokens import PieceCounter
from xalen_batch.endpoints.usage import RESPONSE_KEYS, Usage, table
from xalen_batch.endpoints.window import Window

_HINTS = {
    "input": 'Send a string such as "Hello", or a list of items such as {"role": "user",'
    ' "content": "Hello"}.',
    "max_output_tokens": "Allow at least one token, or leave it out.",
}
# Parameters that refer to something that a batch does not keep.
_KEPT = {
    "background": "A batch line runs in the background already. Leave background out.",
    "previous_response_id": "A batch keeps no responses to continue. Send the whole conversation"
    " as `input`.",
    "conversation": "A batch keeps no conversations. Send the whole conversation as `input`.",
}


class ResponseRequest(Struct):
    """A Response's request.

    `chat` is the same request as a chat, which tells what the model reads; None: it has parts that
    no chat has, and is read as JSON.
    """

    model: str
    input: str | Annotated[list[dict[str, Any]], Meta(min_length=1)]
    instructions: str | None = None
    stream: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    parallel_tool_calls: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    chat: dict[str, Any] | None = field(default=None, name=OURS)

    @property
    def choices(self) -> int:
        return 1

    @property
    def longest_answer(self) -> int | None:
        return self.max_output_tokens

    @property
    def inputs(self) -> int:
        return 0

    @property
    def live_only(self) -> InvalidBody | None:
        if self.stream:
            return STREAM
        given = next((name for name in _KEPT if getattr(self, name)), None)
        return InvalidBody(f"body.{given}", _KEPT[given]) if given else None

    @property
    def cacheable(self) -> Prompt:
        return () if self.chat is None else chat.pieces(self.chat)

    def input_tokens(self, counter: PieceCounter) -> int:
        if self.chat is None:
            return counter(msgspec.json.encode([self.instructions, self.input]).decode())
        return tokens.count_chat(
            self.chat["messages"], tools=self.chat.get("tools"), counter=counter
        )

    def overflow(self, window: Window) -> InvalidBody | None:
        messages = [] if self.chat is None else self.chat["messages"]
        excess = window.overflow(map(chat.text_of, messages))
        return (
            None
            if excess is None
            else InvalidBody("body.input", f"The input has {excess} Shorten it.")
        )


def fit(body: dict[str, Any]) -> ResponseRequest | InvalidBody:
    """The body with its checked fields typed, or its first error."""
    asked = typed(body, ResponseRequest, _HINTS)
    if isinstance(asked, InvalidBody):
        return asked
    try:
        asked.chat = to_chat(body)
    except NotChat:
        asked.chat = None
    except InvalidItem as invalid:
        return invalid.body
    return asked


KEYS = RESPONSE_KEYS
reported = usage.reported


def problem(answer: Mapping[str, Any]) -> str | None:
    """The reason why a 2xx answer is none; None: it is one."""
    if answer.get("status") in ("failed", "cancelled"):
        return f"The backend's response has the status {answer['status']}."
    return lacks(answer, "output")


def counted(answer: Mapping[str, Any], asked: Mapping[str, Any]) -> Usage:
    """The usage of an answer to a request, as we count it."""
    request, output = fit(dict(asked)), answer.get("output")
    read = 0 if isinstance(request, InvalidBody) else request.input_tokens(tokens.count)
    items = map(table, output) if isinstance(output, list) else ()
    return Usage(read, sum(map(_written, items)), counted=True)


def _written(item: Mapping[str, Any]) -> int:
    if item.get("type") == "function_call":
        return tokens.count_json({key: item.get(key) for key in ("name", "arguments")})
    content = item.get("content")
    parts = map(table, content) if isinstance(content, list) else ()
    texts = [part.get(key) for part in parts for key in ("text", "refusal")]
    return sum(tokens.count(text) for text in texts if isinstance(text, str))


def allowance(body: bytes) -> int:
    """Input tokens beyond the request's bytes that a report may have: those of media by URL."""
    kinds = (b'"input_image"', b'"input_file"', b'"input_audio"')
    return chat.MEDIA_ALLOWANCE * sum(map(body.count, kinds))


class _Length(Struct):
    max_output_tokens: int | None = None


_length = msgspec.json.Decoder(_Length, strict=False).decode


def answers(body: bytes) -> tuple[int, int | None]:
    """One answer, and the most tokens of it; None: the request sets no limit."""
    try:
        return 1, _length(body).max_output_tokens
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The backend will refuse the request.
        return 1, None
