"""A chat completion that names a reranker, so a chat client changes only the model's name.

Its last user message carries `{"query", "documents", "top_n"?}` as JSON.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from xalen_batch.endpoints import chat, rerank
from xalen_batch.endpoints.form import InvalidBody, Prompt
from xalen_batch.endpoints.rerank import RerankRequest
from xalen_batch.endpoints.tokens import PieceCounter
from xalen_batch.endpoints.whole import whole
from xalen_batch.endpoints.window import Window


@dataclass(frozen=True, slots=True)
class RankingChat:
    """A chat to a reranker.

    `ranking` is None if its last user message has another form. The line then fails when it runs,
    with an error that shows the expected form.
    """

    model: str
    live_only: InvalidBody | None
    ranking: RerankRequest | None
    choices: int = 0
    longest_answer: int | None = None
    inputs: int = 0
    cacheable: Prompt = ()

    def input_tokens(self, counter: PieceCounter) -> int:
        return self.ranking.input_tokens(counter) if self.ranking else 0

    def overflow(self, window: Window) -> InvalidBody | None:
        return self.ranking.overflow_at(window, "body.messages") if self.ranking else None


def fit(body: dict[str, Any]) -> RankingChat | InvalidBody:
    """The body with its checked fields typed, or its first error."""
    asked = chat.fit(body)
    if isinstance(asked, InvalidBody):
        return asked
    query = query_of(body)
    ranking = rerank.fit(query) if isinstance(query, dict) else None
    return RankingChat(
        asked.model, asked.live_only, ranking if isinstance(ranking, RerankRequest) else None
    )


def query_of(body: Mapping[str, Any]) -> dict[str, Any] | str:
    """The rerank request in a chat's last user message; a string is the problem that it has."""
    content = _last_user_content(body.get("messages"))
    if content is None:
        return "there is no user message with text"
    try:
        asked = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return "the message is not JSON"
    if not isinstance(asked, dict):
        return "the message is not a JSON object"
    asked = whole(asked)
    return problem_of(asked) or {**asked, "model": body.get("model")}


def problem_of(asked: dict[str, Any]) -> str | None:
    """The first error of a rerank request, without a period; None if the request is valid."""
    documents, top_n = asked.get("documents"), asked.get("top_n")
    if not isinstance(asked.get("query"), str) or not asked["query"]:
        return "`query` must be a text"
    if (
        not isinstance(documents, list)
        or not documents
        or not all(_is_document(document) for document in documents)
    ):
        return "`documents` must be a list of texts or of objects with `text`"
    if top_n is not None and (not isinstance(top_n, int) or isinstance(top_n, bool) or top_n < 1):
        return "`top_n` must be a whole number of at least 1"
    if not isinstance(asked.get("return_documents"), bool | None):
        return "`return_documents` must be true or false"
    if asked.get("stream") is not None and asked["stream"] is not False:
        return "`stream` must be left out, or false: a batch has no stream"
    return None


def _is_document(document: Any) -> bool:
    return isinstance(document.get("text") if isinstance(document, dict) else document, str)


def _last_user_content(messages: Any) -> str | None:
    """The text of the last user message, whose content is a string or a list of text parts."""
    if not isinstance(messages, list):
        return None
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                return (
                    "".join(
                        part["text"]
                        for part in content
                        if isinstance(part, dict) and isinstance(part.get("text"), str)
                    )
                    or None
                )
            return content if isinstance(content, str) else None
    return None
