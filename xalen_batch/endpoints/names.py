"""The endpoints by name, in every spelling."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator

Endpoint = Literal[
    "/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings", "/v1/rerank"
]
CHAT: Endpoint = "/v1/chat/completions"
RESPONSES: Endpoint = "/v1/responses"
COMPLETIONS: Endpoint = "/v1/completions"
EMBEDDINGS: Endpoint = "/v1/embeddings"
RERANK: Endpoint = "/v1/rerank"
ENDPOINTS: tuple[Endpoint, ...] = (CHAT, RESPONSES, COMPLETIONS, EMBEDDINGS, RERANK)
# Spellings of endpoints in files for other servers: without `/v1` for Azure OpenAI and vLLM, with
# `/v2` for Cohere's rerank.
_SPELLINGS: Mapping[str, Endpoint] = {
    **{endpoint: endpoint for endpoint in ENDPOINTS},
    **{endpoint.removeprefix("/v1"): endpoint for endpoint in ENDPOINTS},
    "/v2/rerank": RERANK,
}


def spellings(endpoint: Endpoint) -> list[str]:
    """All spellings of an endpoint, the canonical one first; a slash at the end does not matter."""
    return [spelling for spelling, meant in _SPELLINGS.items() if meant == endpoint]


def endpoint_of(url: object) -> Endpoint | None:
    """The endpoint that a url names in any of its spellings; None if it is not an endpoint."""
    return _SPELLINGS.get(url.rstrip("/")) if isinstance(url, str) else None


# An endpoint in a request. Validation replaces any spelling by the canonical one.
NamedEndpoint = Annotated[Endpoint, BeforeValidator(lambda url: endpoint_of(url) or url)]
