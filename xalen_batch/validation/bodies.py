"""The schema of a line's body at each endpoint, as far as OpenAI's API description is unambiguous.

Fields that are not listed here are not checked: they reach the backend unchanged.
"""

import re
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from xalen_batch.backends import rerank_chat
from xalen_batch.backends.contract import Refused
from xalen_batch.backends.whole import whole
from xalen_batch.catalog import RERANK, Endpoint
from xalen_batch.validation.errors import quoted

MAX_CUSTOM_ID = 512
ROLES = ("developer", "system", "user", "assistant", "tool", "function")

# The range of a signed 64-bit integer. Some parsers read a larger one as a float, or refuse it.
LEAST_INT, MOST_INT = -(2**63), 2**63 - 1
Count = Annotated[int, Meta(ge=1, le=MOST_INT)]


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


class ChatRequest(Struct):
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


class UsualChat(ChatRequest, forbid_unknown_fields=True, gc=False):
    """The usual chat request. It forbids unknown fields, so a decoded body has a valid form."""

    messages: Annotated[list[UsualMessage], Meta(min_length=1)]  # type: ignore[assignment]  # narrower
    seed: Annotated[int, Meta(ge=LEAST_INT, le=MOST_INT)] | None = None
    user: str | None = None
    stop: str | list[str] | None = None
    response_format: UsualFormat | None = None


class UsualLine(Struct, forbid_unknown_fields=True, gc=False):
    custom_id: Annotated[str, Meta(min_length=1, max_length=MAX_CUSTOM_ID)]
    method: Literal["POST"]
    url: str
    body: UsualChat


# Decodes all values in a buffer. It does not check that each line has one (see `fast_path`).
usual_lines = msgspec.json.Decoder(UsualLine).decode_lines


class Document(Struct):
    text: str


class RerankRequest(Struct):
    model: str
    query: Annotated[str, Meta(min_length=1)]
    documents: Annotated[list[str | Document], Meta(min_length=1)]
    top_n: Count | None = None
    return_documents: bool | None = None
    stream: bool | None = None

    @property
    def texts(self) -> list[str]:
        return [
            document if isinstance(document, str) else document.text for document in self.documents
        ]


Request = ChatRequest | RerankRequest


class InvalidBody(NamedTuple):
    """The error of a body that its endpoint does not take. `param` is a path in the line."""

    param: str
    message: str


def fit(body: dict[str, Any], endpoint: Endpoint) -> Request | InvalidBody:
    """The body with its checked fields typed, or its first error."""
    body = whole(body)
    try:
        if endpoint == RERANK:
            return msgspec.convert(body, RerankRequest)
        chat = msgspec.convert(body, ChatRequest)
    except msgspec.ValidationError as error:
        return _invalid_body(str(error))
    return _wrong_message(chat) or chat


def ranking(chat: ChatRequest) -> RerankRequest | None:
    """The query and documents in the last user message of a chat request to a reranker.

    None if that message has another form. The line then fails when it runs, with an error that
    shows the expected form.
    """
    asked = rerank_chat.to_rerank(msgspec.json.encode(chat))
    return None if isinstance(asked, Refused) else msgspec.json.decode(asked, type=RerankRequest)


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


_WHERE = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")
# JSON's name of a type by the Python name that msgspec uses.
_WORDS = {"str": "string", "int": "whole number", "float": "number", "bool": "boolean"}


def _invalid_body(error: str) -> InvalidBody:
    """A msgspec error, reworded for the author of the body.

    msgspec names types and limits, and never quotes a value.
    """
    found = _WHERE.fullmatch(error)
    what, path = (found["what"], found["path"] or "") if found else (error, "")
    missing = _MISSING.fullmatch(what)
    if missing:
        return InvalidBody(
            f"body{path}.{missing[1]}",
            f"`{missing[1]}` is missing. {_HINTS.get(missing[1], 'Add it.')}",
        )
    name = re.split(r"[.\[]", path.lstrip("."))[0]
    expected = re.sub(r"\b(str|int|float|bool)\b", lambda word: _WORDS[word[0]], what)
    return InvalidBody(
        f"body{path}", f"{expected}. {_HINTS.get(name, 'Change its value or leave it out.')}"
    )


_HINTS = {
    "model": "Name a model of the catalog.",
    "messages": 'Send a list such as [{"role": "user", "content": "Hello"}].',
    "role": f"Use one of: {', '.join(ROLES)}.",
    "type": "Name the part's type, such as text.",
    "query": "Send the search query as a string that is not empty.",
    "documents": 'Send a list of strings, or of objects such as {"text": "…"}, that is not empty.',
    "text": 'Send the document as a string or as {"text": "…"}.',
    "top_n": "Ask for at least one result, or leave it out to get all.",
    "stream": "Leave it out: a batch has no stream.",
}
