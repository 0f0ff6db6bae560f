"""Model servers of each kind, imitated: their endpoints with the shapes that they answer."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.integration.backends.hostile import GOOD

Routes = Mapping[str, Any]
EMBEDDING = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}],
    "usage": {"prompt_tokens": 3, "total_tokens": 3},
}
RANKING = {
    "id": "r",
    "results": [{"index": 0, "relevance_score": 0.9}, {"index": 1, "relevance_score": 0.1}],
    "usage": {"total_tokens": 9},
}
CHAT = json.loads(GOOD)
COMPLETION = {"object": "text_completion", "choices": [{"text": "Hi"}], "usage": CHAT["usage"]}
RESPONSE = {"object": "response", "output": [], "usage": {"input_tokens": 3, "output_tokens": 2}}


def listing(*entries: Mapping[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": [{"object": "model", **entry} for entry in entries]}


VLLM: Routes = {
    "GET /v1/models": listing(
        {"id": "Qwen/Qwen3-8B", "owned_by": "vllm", "root": "Qwen/Qwen3-8B", "max_model_len": 32768}
    ),
    "GET /version": {"version": "0.12.0"},
    "POST /v1/chat/completions": CHAT,
    "POST /v1/completions": COMPLETION,
    "POST /v1/responses": RESPONSE,
}
VLLM_RERANKER: Routes = {
    "GET /v1/models": listing(
        {"id": "BAAI/bge-reranker-v2-m3", "owned_by": "vllm", "max_model_len": 8192}
    ),
    "GET /version": {"version": "0.12.0"},
    "POST /v1/rerank": RANKING,
    "POST /rerank": RANKING,
}
SGLANG: Routes = {
    "GET /v1/models": listing(
        {"id": "meta-llama/Llama-3.1-8B", "owned_by": "sglang", "max_model_len": 131072}
    ),
    "GET /get_model_info": {"model_path": "meta-llama/Llama-3.1-8B", "is_generation": True},
    "GET /get_server_info": {"version": "0.5.5", "max_running_requests": 128},
    "POST /v1/chat/completions": CHAT,
    "POST /v1/completions": COMPLETION,
}
LLAMA_CPP: Routes = {
    "GET /v1/models": {
        "models": [{"name": "gemma-3-4b-it.Q4_K_M.gguf"}],
        **listing(
            {
                "id": "gemma-3-4b-it.Q4_K_M.gguf",
                "owned_by": "llamacpp",
                "meta": {"n_ctx_train": 131072, "n_params": 3880099328},
            }
        ),
    },
    "GET /props": {
        "default_generation_settings": {"n_ctx": 8192, "params": {}},
        "total_slots": 4,
        "model_path": "gemma-3-4b-it.Q4_K_M.gguf",
        "build_info": "b6970",
    },
    "POST /v1/chat/completions": CHAT,
    "POST /v1/completions": COMPLETION,
}
OLLAMA: Routes = {
    "GET /v1/models": listing(
        {"id": "llama3.2:latest", "owned_by": "library"},
        {"id": "nomic-embed-text:latest", "owned_by": "library"},
    ),
    "GET /api/tags": {
        "models": [
            {"name": "llama3.2:latest", "details": {"family": "llama", "parameter_size": "3.2B"}},
            {"name": "nomic-embed-text:latest", "details": {"parameter_size": "137M"}},
        ]
    },
    "GET /api/version": {"version": "0.12.10"},
    "GET /api/ps": {"models": [{"name": "llama3.2:latest", "context_length": 4096}]},
    "POST /api/show": {
        "parameters": 'stop "<|eot_id|>"',
        "model_info": {"general.architecture": "llama", "llama.context_length": 131072},
        "capabilities": ["completion", "tools"],
    },
    "POST /v1/chat/completions": CHAT,
    "POST /v1/completions": COMPLETION,
    "POST /v1/embeddings": EMBEDDING,
}
TEI_RERANKER: Routes = {
    "GET /info": {
        "model_id": "BAAI/bge-reranker-v2-m3",
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}}},
        "max_concurrent_requests": 512,
        "max_input_length": 8192,
        "max_client_batch_size": 32,
        "version": "1.8.2",
    },
    "POST /rerank": [{"index": 0, "score": 0.9}, {"index": 1, "score": 0.1}],
}
TEI_EMBEDDING: Routes = {
    "GET /info": {
        "model_id": "intfloat/multilingual-e5-small",
        "model_type": {"embedding": {"pooling": "mean"}},
        "max_input_length": 512,
        "max_client_batch_size": 8,
        "version": "1.8.2",
    },
    "POST /v1/embeddings": EMBEDDING,
    "POST /embeddings": EMBEDDING,
}
LM_STUDIO: Routes = {
    "GET /v1/models": listing({"id": "qwen2.5-7b-instruct", "owned_by": "organization_owner"}),
    "GET /api/v0/models": listing(
        {
            "id": "qwen2.5-7b-instruct",
            "type": "llm",
            "publisher": "lmstudio-community",
            "compatibility_type": "gguf",
            "state": "loaded",
            "max_context_length": 32768,
            "loaded_context_length": 8192,
        }
    ),
    "POST /v1/chat/completions": CHAT,
}
OTHER: Routes = {
    "GET /v1/models": listing({"id": "gpt-x", "owned_by": "someone", "context_length": 16000}),
    "POST /v1/chat/completions": CHAT,
}


class Imitated:
    """`seen`: each request as method, path, headers and body."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.seen: list[tuple[str, dict[str, str], Any]] = []

    def count(self, route: str) -> int:
        return sum(seen == route for seen, _, _ in self.seen)


@contextmanager
def imitate(routes: Routes, *, key: str | None = None) -> Iterator[Imitated]:
    """A server with these answers; a 404 in OpenAI's shape for anything else.

    A route's answer may be a pair of a status and a body. With `key`, others get a 401.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            route = f"{self.command} {self.path}"
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.seen.append((route, headers, json.loads(body) if body else None))
            status, found = 200, routes.get(route)
            if key is not None and headers.get("authorization") != f"Bearer {key}":
                status, found = 401, {"error": {"message": "Invalid API key"}}
            elif found is None:
                status, found = 404, {"detail": "Not Found"}
            elif isinstance(found, tuple):
                status, found = found
            sent = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Imitated(http.server_address[1])
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
