"""Which endpoints a model has: one tiny request to each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from xalen_batch.cli.model_servers.server import Reply, Server
from xalen_batch.endpoints.names import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    RERANK,
    RESPONSES,
    Endpoint,
)

# Endpoints whose answers have output tokens.
WRITING = frozenset({CHAT, COMPLETIONS, RESPONSES})
# A request for each endpoint that costs a few tokens, without its model.
TINY: Mapping[Endpoint, Mapping[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
    COMPLETIONS: {"prompt": "Hi", "max_tokens": 1},
    RESPONSES: {"input": "Hi", "max_output_tokens": 16, "store": False},
    EMBEDDINGS: {"input": "Hi"},
    RERANK: {"query": "Hi", "documents": ["Hi", "Apples"]},
}
# The field that an answer has as a list.
_LISTS = {
    CHAT: "choices",
    COMPLETIONS: "choices",
    RESPONSES: "output",
    EMBEDDINGS: "data",
    RERANK: "results",
}


@dataclass(slots=True)
class Probed:
    """The endpoints that answered, and the error of each that did not, as the server wrote it.

    `rerank_api` and `rerank_url`: shape and address of its rerank endpoint, if it has one.
    """

    endpoints: list[Endpoint] = field(default_factory=list)
    errors: dict[Endpoint, str] = field(default_factory=dict)
    rerank_api: str | None = None
    rerank_url: str | None = None


def probe(server: Server, model: str, say: Callable[[str], None] = lambda _: None) -> Probed:
    """Ask each endpoint once."""
    found = Probed()
    for endpoint, body in TINY.items():
        say(f"Asking {endpoint} …")
        if endpoint == RERANK:
            _probe_rerank(server, model, found)
            continue
        path = endpoint.removeprefix("/v1")
        reply = server.post(path, {"model": model, **body})
        if _is_answer(endpoint, reply):
            found.endpoints.append(endpoint)
        else:
            found.errors[endpoint] = reply.error
    return found


def _probe_rerank(server: Server, model: str, found: Probed) -> None:
    # TEI has its rerank endpoint at the root, and other field names.
    texts = {"query": "Hi", "texts": ["Hi", "Apples"]}
    attempts: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("/rerank", {"model": model, **TINY[RERANK]}),
        ("//rerank", texts),
    )
    for path, body in attempts:
        reply = server.post(path, body)
        api = _rerank_api(reply)
        if api is not None:
            found.endpoints.append(RERANK)
            found.rerank_api = api
            found.rerank_url = server.url if path == "/rerank" else _root(server)
            found.errors.pop(RERANK, None)
            return
        found.errors.setdefault(RERANK, reply.error)


def _root(server: Server) -> str:
    return server.url.removesuffix("/v1")


def _is_answer(endpoint: Endpoint, reply: Reply) -> bool:
    return isinstance(reply.table.get(_LISTS[endpoint]), list)


def _rerank_api(reply: Reply) -> str | None:
    """The shape of a ranking; None if it is none."""
    if isinstance(reply.json, list):
        is_ranking = all(isinstance(row, dict) and "score" in row for row in reply.json)
        return "tei" if reply.json and is_ranking else None
    if not isinstance(reply.table.get("results"), list):
        return None
    meta = reply.table.get("meta")
    return "cohere" if isinstance(meta, dict) and "billed_units" in meta else "jina"
