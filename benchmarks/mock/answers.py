"""The bytes of answers: valid chat completions and rankings, made beforehand where possible."""

from functools import lru_cache

import msgspec

PROMPT_TOKENS = 100
TOKENS_PER_DOCUMENT = 50
TOKENS_PER_INPUT = 16
DIMENSIONS = 384
BYTES_PER_TOKEN = 4
_REASONS = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 429: b"Too Many Requests"}


def http(body: bytes, status: int = 200, extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n%s" % (
        status,
        _REASONS[status],
        len(body),
        extra,
        body,
    )


def completion_tokens(answer_bytes: int) -> int:
    return max(1, answer_bytes // (2 * BYTES_PER_TOKEN))


@lru_cache(maxsize=64)
def _chat_parts(answer_bytes: int) -> tuple[bytes, bytes]:
    """What stands before and after the usage of an answer of about so many bytes."""
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "mistral-small-3-1",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}
        ],
    }
    bare = len(msgspec.json.encode(answer)) + 90
    answer["choices"][0]["message"]["content"] = ("lorem ipsum " * (answer_bytes // 12 + 1))[
        : max(1, answer_bytes - bare)
    ]  # type: ignore[index]
    return msgspec.json.encode(answer)[:-1] + b',"usage":', b"}"


def chat(
    answer_bytes: int, prompt_tokens: int = PROMPT_TOKENS, cached_tokens: int | None = None
) -> bytes:
    """A chat completion as a whole HTTP answer."""
    before, after = _chat_parts(answer_bytes)
    written = completion_tokens(answer_bytes)
    details = (
        b""
        if cached_tokens is None
        else b',"prompt_tokens_details":{"cached_tokens":%d}' % cached_tokens
    )
    usage = b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d%s}' % (
        prompt_tokens,
        written,
        prompt_tokens + written,
        details,
    )
    return http(before + usage + after)


@lru_cache(maxsize=1024)
def rerank(documents: int) -> bytes:
    """A ranking of so many documents, by falling score, as a whole HTTP answer."""
    order = [(7 * place) % documents if documents % 7 else place for place in range(documents)]
    results = [
        {"index": index, "relevance_score": round(1 - place / (documents + 1), 6)}
        for place, index in enumerate(order)
    ]
    tokens = documents * TOKENS_PER_DOCUMENT
    body = {
        "id": "rerank-1",
        "model": "bge-reranker-v2",
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return http(msgspec.json.encode(body))


@lru_cache(maxsize=1024)
def embeddings(inputs: int) -> bytes:
    """One vector for each input, as a whole HTTP answer."""
    vector = [round((7 * place % 384 - 192) / 2_000, 8) for place in range(DIMENSIONS)]
    tokens = inputs * TOKENS_PER_INPUT
    body = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector} for index in range(inputs)
        ],
        "model": "bge-m3",
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return http(msgspec.json.encode(body))


@lru_cache(maxsize=16)
def too_many(retry_after: int) -> bytes:
    body = (
        b'{"error":{"message":"too many'
        b' requests","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}}'
    )
    return http(body, 429, b"retry-after: %d\r\n" % retry_after)


def error(status: int, message: str) -> bytes:
    return http(
        msgspec.json.encode(
            {
                "error": {
                    "message": message,
                    "type": "invalid_request_error",
                    "param": None,
                    "code": None,
                }
            }
        ),
        status,
    )
