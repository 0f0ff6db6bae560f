"""What the body of a line must look like at each endpoint, as far as OpenAI's description is
unambiguous.

What is not listed here is the model's business: it reaches the backend as it is.
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

# Not every parser reads a longer whole number as one.
LEAST_INT, MOST_INT = -(2**63), 2**63 - 1
Count = Annotated[int, Meta(ge=1, le=MOST_INT)]


class Part(Struct):
    """One part of a message's content; only text parts are looked into."""

    type: str
    text: str | None = None


class Message(Struct):
    role: str
    content: str | Annotated[list[Part], Meta(min_length=1)] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    function_call: dict[str, Any] | None = None
    refusal: str | None = None
    audio: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """Its written content; pictures and sounds have none."""
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
        """Tokens that one choice may have; None where the request sets no limit."""
        return self.max_completion_tokens or self.max_tokens


class UsualFormat(Struct, forbid_unknown_fields=True, gc=False):
    type: Literal["text", "json_object"]


class UsualMessage(Message, forbid_unknown_fields=True, gc=False):
    """Written text and nothing else."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str
    tool_calls: None = None
    function_call: None = None
    refusal: None = None
    audio: None = None


class UsualChat(ChatRequest, forbid_unknown_fields=True, gc=False):
    """What nearly every chat request is: nothing in it goes unread, so what passes here has no
    fault of form.
    """

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


# All values that there are in some bytes, without regard to lines.
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


class Misfit(NamedTuple):
    """Why a body does not fit its endpoint. `param` is a path in the line."""

    param: str
    message: str


def fit(body: dict[str, Any], endpoint: Endpoint) -> Request | Misfit:
    """The body, typed where it is looked at, or what is wrong with it."""
    body = whole(body)
    try:
        if endpoint == RERANK:
            return msgspec.convert(body, RerankRequest)
        chat = msgspec.convert(body, ChatRequest)
    except msgspec.ValidationError as error:
        return _misfit(str(error))
    return _wrong_message(chat) or chat


def ranking(chat: ChatRequest) -> RerankRequest | None:
    """The query and documents that a chat request to a reranker carries in its last user message,
    if it does.
    """
    asked = rerank_chat.to_rerank(msgspec.json.encode(chat))
    # Refused: the line will fail when it runs, with the expected shape in its error.
    return None if isinstance(asked, Refused) else msgspec.json.decode(asked, type=RerankRequest)


def _wrong_message(chat: ChatRequest) -> Misfit | None:
    for index, message in enumerate(chat.messages):
        if isinstance(message.content, str) and message.role in ROLES:
            continue
        param = f"body.messages[{index}]"
        if message.role not in ROLES:
            return Misfit(
                f"{param}.role",
                f"{quoted(message.role)} is not a role. Use one of: {', '.join(ROLES)}.",
            )
        if isinstance(message.content, list):
            for number, part in enumerate(message.content):
                if part.type == "text" and part.text is None:
                    return Misfit(
                        f"{param}.content[{number}].text",
                        "A part of type text needs its `text`, a string.",
                    )
        if message.content is None and not _may_be_silent(message):
            return Misfit(
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
# JSON's own words for what msgspec calls by Python's.
_WORDS = {"str": "string", "int": "whole number", "float": "number", "bool": "boolean"}


def _misfit(error: str) -> Misfit:
    """msgspec's words, which hold types and limits but never a value, in those of the person who
    wrote the body.
    """
    found = _WHERE.fullmatch(error)
    what, path = (found["what"], found["path"] or "") if found else (error, "")
    if missing := _MISSING.fullmatch(what):
        return Misfit(
            f"body{path}.{missing[1]}",
            f"`{missing[1]}` is missing. {_HINTS.get(missing[1], 'Add it.')}",
        )
    name = re.split(r"[.\[]", path.lstrip("."))[0]
    expected = re.sub(r"\b(str|int|float|bool)\b", lambda word: _WORDS[word[0]], what)
    return Misfit(
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
