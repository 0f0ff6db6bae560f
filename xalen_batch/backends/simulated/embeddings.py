"""The simulated embedding model: texts that share words have similar vectors.

A vector is the sum of one pseudo-random unit vector for each word, normalized. Its cosine
similarities are therefore those of bags of words.
"""

import math
import struct
from base64 import b64encode
from functools import lru_cache
from hashlib import shake_128
from typing import Any

from xalen_batch.backends.simulated.constants import FINGERPRINT
from xalen_batch.backends.simulated.labels import words_of
from xalen_batch.backends.simulated.refusal import Refusal, checked
from xalen_batch.catalog import Model
from xalen_batch.endpoints import embeddings, token_text, tokens
from xalen_batch.endpoints.token_text import TokenText

DIMENSIONS = 1_024
# Dimensions that a word's vector is not zero in.
WORD_DIMENSIONS = 32


def embedded(model: Model, body: dict[str, Any], digest: bytes) -> dict[str, Any]:
    """The answer to an embeddings request."""
    asked = checked(embeddings.fit(body))
    excess = asked.overflow(model.window)
    if excess is not None:
        raise Refusal(excess.message, code="context_length_exceeded", param="input")
    size = asked.dimensions or DIMENSIONS
    if size > DIMENSIONS:
        raise Refusal(
            f"This model has {DIMENSIONS} dimensions, and the request asks for {size}.",
            param="dimensions",
        )
    vectors = [_vector(text, size) for text in asked.texts]
    read = sum(token_text.count(text, tokens.count) for text in asked.texts)
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _base64(vector) if asked.encoding_format == "base64" else vector,
            }
            for index, vector in enumerate(vectors)
        ],
        "model": body.get("model"),
        "usage": {"prompt_tokens": read, "total_tokens": read},
        "system_fingerprint": FINGERPRINT,
    }


def _vector(text: TokenText, size: int) -> list[float]:
    words = words_of(text.lower()) if isinstance(text, str) else [str(token) for token in text]
    sums = [0.0] * size
    # A text without words has a vector of its own too.
    for word in words or [str(text)]:
        for place, sign in _places(word):
            sums[place % size] += sign
    length = math.sqrt(sum(value * value for value in sums)) or 1.0
    # The precision of a 32-bit float, which base64 has.
    return [round(value / length, 7) for value in sums]


@lru_cache(maxsize=4_096)
def _places(word: str) -> list[tuple[int, float]]:
    """The dimensions of a word's vector, each with its sign."""
    found = struct.unpack(
        f"<{WORD_DIMENSIONS}H",
        shake_128(word.encode("utf-8", "surrogatepass")).digest(2 * WORD_DIMENSIONS),
    )
    return [(value % DIMENSIONS, 1.0 if value & 0x8000 else -1.0) for value in found]


def _base64(vector: list[float]) -> str:
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
