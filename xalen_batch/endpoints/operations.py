"""The operations: one module for each endpoint, by the endpoint's name."""

from collections.abc import Mapping
from typing import Any, Protocol

from xalen_batch.endpoints import chat, completions, embeddings, rerank, rerank_chat, responses
from xalen_batch.endpoints.form import Form, InvalidBody
from xalen_batch.endpoints.names import CHAT, COMPLETIONS, EMBEDDINGS, RERANK, RESPONSES, Endpoint
from xalen_batch.endpoints.usage import Keys, Usage
from xalen_batch.endpoints.whole import whole


class Operation(Protocol):
    """The contract of an endpoint's module. Its functions are pure, and no input makes one raise.

    `KEYS`: the standard keys of an answer's usage.
    """

    @property
    def KEYS(self) -> Keys: ...  # noqa: N802

    def fit(self, body: dict[str, Any]) -> Form | InvalidBody:
        """The body with its checked fields typed, or its first error."""

    def problem(self, answer: Mapping[str, Any]) -> str | None:
        """The reason why a 2xx answer is none; None: it is one."""

    def reported(self, answer: Mapping[str, Any]) -> Usage | None:
        """The usage that an answer reports; None: none that can be read."""

    def counted(self, answer: Mapping[str, Any], asked: Mapping[str, Any]) -> Usage:
        """The usage of an answer to a request, as we count it."""

    def allowance(self, body: bytes) -> int:
        """Input tokens beyond the request's bytes that a report may have."""

    def answers(self, body: bytes) -> tuple[int, int | None]:
        """The answers that a request asks for (0: without output tokens), and the most tokens of
        one; None: it sets no limit.
        """


OPERATIONS: Mapping[Endpoint, Operation] = {
    CHAT: chat,
    RESPONSES: responses,
    COMPLETIONS: completions,
    EMBEDDINGS: embeddings,
    RERANK: rerank,
}


def fit(body: dict[str, Any], endpoint: Endpoint, *, is_reranker: bool) -> Form | InvalidBody:
    """The body of a line with its checked fields typed, or its first error.

    `is_reranker`: the model that it names is one.
    """
    body = whole(body)
    if is_reranker and endpoint == CHAT:
        return rerank_chat.fit(body)
    return OPERATIONS[endpoint].fit(body)
