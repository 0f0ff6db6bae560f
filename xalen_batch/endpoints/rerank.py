"""`/v1/rerank`: its requests, in the shape of Jina and vLLM, and the usage of its answers."""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from xalen_batch.endpoints import tokens, usage
from xalen_batch.endpoints.form import STREAM, Count, InvalidBody, Prompt, lacks, typed
from xalen_batch.endpoints.tokens import PieceCounter
from xalen_batch.endpoints.usage import INPUT_KEYS, Usage
from xalen_batch.endpoints.whole import decoded
from xalen_batch.endpoints.window import Window

# Tokens of a pair's template.
PAIR_ALLOWANCE = 16
_HINTS = {
    "query": "Send the search query as a string that is not empty.",
    "documents": 'Send a list of strings, or of objects such as {"text": "…"}, that is not empty.',
    "text": 'Send the document as a string or as {"text": "…"}.',
    "top_n": "Ask for at least one result, or leave it out to get all.",
}


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

    @property
    def choices(self) -> int:
        return 0

    @property
    def longest_answer(self) -> int | None:
        return None

    @property
    def inputs(self) -> int:
        return 0

    @property
    def live_only(self) -> InvalidBody | None:
        return STREAM if self.stream else None

    @property
    def cacheable(self) -> Prompt:
        # A reranker reads each pair on its own, so its lines gain nothing from a prefix cache.
        return ()

    def input_tokens(self, counter: PieceCounter) -> int:
        return tokens.count_rerank(self.query, self.texts, counter=counter)

    def overflow(self, window: Window) -> InvalidBody | None:
        return self.overflow_at(window, "body.documents[{}]")

    def overflow_at(self, window: Window, param: str) -> InvalidBody | None:
        """A reranker reads pairs: each document together with the query has to fit the window."""
        for index, text in enumerate(self.texts):
            excess = window.overflow((self.query, text))
            if excess is not None:
                return InvalidBody(
                    param.format(index),
                    f"The query and document {index} have {excess} Shorten the document, or cut it"
                    " in several.",
                )
        return None


def fit(body: dict[str, Any]) -> RerankRequest | InvalidBody:
    """The body with its checked fields typed, or its first error."""
    return typed(body, RerankRequest, _HINTS)


KEYS = INPUT_KEYS
reported = usage.reported_input


def problem(answer: Mapping[str, Any]) -> str | None:
    """The reason why a 2xx answer is none; None: it is one."""
    return lacks(answer, "results")


def counted(answer: Mapping[str, Any], asked: Mapping[str, Any]) -> Usage:
    """The usage of an answer to a request, as we count it."""
    return Usage(tokens.count_rerank(*_pairs(asked)), counted=True)


def allowance(body: bytes) -> int:
    """Input tokens beyond the request's bytes that a report may have: the query of each pair."""
    query, documents = _pairs(decoded(body))
    return len(documents) * (tokens.most(query) + PAIR_ALLOWANCE)


def answers(body: bytes) -> tuple[int, int | None]:
    """A rerank has no output tokens."""
    return 0, None


def _pairs(asked: Mapping[str, Any]) -> tuple[str, list[Any]]:
    query, documents = asked.get("query"), asked.get("documents")
    return (query if isinstance(query, str) else ""), (
        documents if isinstance(documents, list) else []
    )
