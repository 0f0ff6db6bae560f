"""`POST /v1/rerank`: its documents, and its answer."""

from typing import NotRequired, TypedDict

from openai import BaseModel


class TextDocument(TypedDict):
    text: str


Document = str | TextDocument


class RerankFields(TypedDict):
    model: str
    query: str
    documents: list[Document]
    # The number of best documents in the answer; all by default.
    top_n: NotRequired[int]
    # Whether each result has its document.
    return_documents: NotRequired[bool]


class RankedDocument(BaseModel):
    text: str


class RerankResult(BaseModel):
    index: int
    """The position of the document in the request, from 0."""
    relevance_score: float
    document: RankedDocument | None = None
    """With `return_documents`."""


class RerankUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class RerankResponse(BaseModel):
    """The documents by relevance, the best first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: RerankUsage | None = None
