"""`/v1/chat/completions`: its requests, as far as OpenAI's API description is unambiguous, and
the usage of its answers.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from xalen_batch.endpoints import tokens, usage
from xalen_batch.endpoints.form import (
    LEAST_INT,
    MOST_INT,
    OURS,
    STREAM,
    Count,
    InvalidBody,
    Prompt,
    lacks,
    typed,
)
from xalen_batch.endpoints.tokens import PieceCounter
from xalen_batch.endpoints.usage import CHAT_KEYS, Usage, table
from xalen_batch.endpoints.window import Window
from xalen_batch.errors import quoted

# A short URL may stand for a picture or a recording of many tokens.
MEDIA_ALLOWANCE = 16_384
ROLES = ("developer", "system", "user", "assistant", "tool", "function")
_HINTS = {
    "messages": 'Send a list such as [{"role": "user", "content": "Hello"}].',
    "role": f"Use one of: {', '.join(ROLES)}.",
    "type": "Name the part's type, such as text.",
}


class ContentPart(Struct):
    """One part of a message's content; of the types of part, only text is checked."""

    type: str
    text: str | None = None


class Message(Struct):
    role: str
    content: str | Annotated[list[ContentPart], Meta(min_length=1)] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    function_call: dict[str, Any] | None = None
    refusal: str | None = None
    audio: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """The text of the content; pictures and sounds add none."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if part.text)
        return self.content or ""


class _Chat(Struct):
    """The fields that every chat request may have."""

    model: str
    messages: Annotated[list[Message], Meta(min_length=1)]
    stream: bool | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def longest_answer(self) -> int | None:
        """The most tokens of one choice; None if the request sets no limit."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def inputs(self) -> int:
        return 0

    @property
    def live_only(self) -> InvalidBody | None:
        return STREAM if self.stream else None

    def overflow(self, window: Window) -> InvalidBody | None:
        excess = window.overflow(message.text for message in self.messages)
        if excess is None:
            return None
        return InvalidBody("body.messages", f"The messages have {excess} Shorten them.")


class ChatRequest(_Chat):
    """Any chat request. `raw` is the whole body, for what no field has: tools and media."""

    raw: dict[str, Any] = field(default_factory=dict, name=OURS)

    @property
    def cacheable(self) -> Prompt:
        return pieces(self.raw)

    def input_tokens(self, counter: PieceCounter) -> int:
        return tokens.count_chat(self.raw["messages"], tools=_tools(self.raw), counter=counter)


class UsualFormat(Struct, forbid_unknown_fields=True, gc=False):
    type: Literal["text", "json_object"]


class UsualMessage(Message, forbid_unknown_fields=True, gc=False):
    """A message with text only."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str
    tool_calls: None = None
    function_call: None = None
    refusal: None = None
    audio: None = None


class UsualChat(_Chat, forbid_unknown_fields=True, gc=False):
    """The usual chat request. It forbids unknown fields, so a decoded body has a valid form."""

    messages: Annotated[list[UsualMessage], Meta(min_length=1)]  # type: ignore[assignment]  # narrower
    seed: Annotated[int, Meta(ge=LEAST_INT, le=MOST_INT)] | None = None
    user: str | None = None
    stop: str | list[str] | None = None
    response_format: UsualFormat | None = None

    @property
    def cacheable(self) -> Prompt:
        return self._texts

    def input_tokens(self, counter: PieceCounter) -> int:
        return tokens.count_texts(self._texts, counter=counter)

    @property
    def _texts(self) -> list[str]:
        return [message.content for message in self.messages]


def pieces(body: Mapping[str, Any]) -> Prompt:
    """A prompt's pieces in the order in which the model reads them: first the tools."""
    tools = body.get("tools")
    contents = [(message, message.get("content")) for message in body["messages"]]
    messages = [
        content if isinstance(content, str) else msgspec.json.encode(message)
        for message, content in contents
    ]
    return [msgspec.json.encode(tools), *messages] if tools else messages


def _tools(body: Mapping[str, Any]) -> Any:
    """The tools of a request; `functions` are those of its older form."""
    tools, functions = body.get("tools"), body.get("functions")
    if isinstance(tools, list) and isinstance(functions, list):
        return [*tools, *functions]
    return tools or functions


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message's content; pictures and sounds add none."""
    return msgspec.convert(message, Message).text


def fit(body: dict[str, Any]) -> ChatRequest | InvalidBody:
    """The body with its checked fields typed, or its first error."""
    chat = typed(body, ChatRequest, _HINTS)
    if isinstance(chat, InvalidBody):
        return chat
    chat.raw = body
    return _wrong_message(chat) or chat


def _wrong_message(chat: ChatRequest) -> InvalidBody | None:
    for index, message in enumerate(chat.messages):
        if isinstance(message.content, str) and message.role in ROLES:
            continue
        param = f"body.messages[{index}]"
        if message.role not in ROLES:
            return InvalidBody(
                f"{param}.role",
                f"{quoted(message.role)} is not a role. Use one of: {', '.join(ROLES)}.",
            )
        if isinstance(message.content, list):
            for number, part in enumerate(message.content):
                if part.type == "text" and part.text is None:
                    return InvalidBody(
                        f"{param}.content[{number}].text",
                        "A part of type text needs its `text`, a string.",
                    )
        if message.content is None and not _may_be_silent(message):
            return InvalidBody(
                f"{param}.content",
                "Give the message a `content`: a string or a list of parts. Only an assistant's"
                " tool calls may have none.",
            )
    return None


def _may_be_silent(message: Message) -> bool:
    if message.role == "function":
        return True
    return message.role == "assistant" and any(
        (message.tool_calls, message.function_call, message.refusal, message.audio)
    )


KEYS = CHAT_KEYS
reported = usage.reported


def problem(answer: Mapping[str, Any]) -> str | None:
    """The reason why a 2xx answer is none; None: it is one."""
    return lacks(answer, "choices")


def counted(answer: Mapping[str, Any], asked: Mapping[str, Any]) -> Usage:
    """The usage of an answer to a request, as we count it."""
    messages, choices = asked.get("messages"), answer.get("choices")
    read = (
        tokens.count_chat(messages, tools=_tools(asked))
        if isinstance(messages, list)
        else tokens.count_json(asked)
    )
    written = sum(map(_written, choices)) if isinstance(choices, list) else 0
    return Usage(read, written, counted=True)


def _written(choice: Any) -> int:
    message = table(table(choice).get("message"))
    texts = [message.get(key) for key in ("content", "reasoning_content", "reasoning", "refusal")]
    total = sum(tokens.count(text) for text in texts if isinstance(text, str))
    calls = filter(None, (message.get("tool_calls"), message.get("function_call")))
    return total + sum(map(tokens.count_json, calls))


def allowance(body: bytes) -> int:
    """Input tokens beyond the request's bytes that a report may have: those of media by URL."""
    return MEDIA_ALLOWANCE * sum(body.count(f'"{kind}"'.encode()) for kind in tokens.MEDIA)


class _Length(Struct):
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


# Not strict: 256.0 is the whole number 256.
_length = msgspec.json.Decoder(_Length, strict=False).decode


def answers(body: bytes) -> tuple[int, int | None]:
    """The choices that a request asks for, and the most tokens of one; None: it sets no limit."""
    try:
        asked = _length(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The backend will refuse the request.
        return 1, None
    return asked.n or 1, asked.max_completion_tokens or asked.max_tokens
