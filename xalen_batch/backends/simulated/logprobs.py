"""Made-up log probabilities of an answer's tokens, as OpenAI returns them.

The tokens are those that `usage` counts, with the blanks before them.
"""

import math
from collections.abc import Mapping
from typing import Any
from zlib import crc32

from xalen_batch.backends.simulated.refusal import Refusal, invalid_type
from xalen_batch.endpoints.tokens import PIECES

MOST_TOP = 20
# Other tokens that could stand in a token's place.
OTHERS = (
    " the", " a", " and", " to", " of", " in", " is", " that", " for", " it", " with", " as",
    " on", " this", " be", " at", ",", ".", "\n", " not", " or", " you",
)  # fmt: skip


def top_of(body: Mapping[str, Any]) -> int | None:
    """The number of alternatives that a request asks for; None for no logprobs. Raises Refusal."""
    wanted, top = body.get("logprobs"), body.get("top_logprobs")
    if wanted is not None and not isinstance(wanted, bool):
        raise invalid_type("logprobs", "a boolean", wanted)
    if top is None:
        return 0 if wanted else None
    if isinstance(top, float) and top.is_integer():
        top = int(top)
    if isinstance(top, bool) or not isinstance(top, int):
        raise invalid_type("top_logprobs", "an integer", top)
    if top < 0:
        raise Refusal(
            f"Invalid 'top_logprobs': integer below minimum value. Expected a value >= 0, but got"
            f" {top} instead.",
            code="integer_below_min_value",
            param="top_logprobs",
        )
    if top > MOST_TOP:
        raise Refusal(
            f"Invalid value for 'top_logprobs': must be less than or equal to {MOST_TOP}.",
            param="top_logprobs",
        )
    if not wanted:
        raise Refusal(
            "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
            param="top_logprobs",
        )
    return top


def logprobs_of(text: str | None, top: int) -> dict[str, Any]:
    """The `logprobs` of a choice with this content; a choice with calls has none."""
    if text is None:
        return {"content": None, "refusal": None}
    content = [_token(token, index, top) for index, token in enumerate(tokens_of(text))]
    return {"content": content, "refusal": None}


def tokens_of(text: str) -> list[str]:
    """The tokens of a text, which concatenate to it."""
    ends = [found.end() for found in PIECES.finditer(text)] or [len(text)]
    # Blanks at the end belong to the last token.
    ends[-1] = len(text)
    starts = [0, *ends]
    return [text[start:end] for start, end in zip(starts, ends, strict=False) if end > start]


def _token(token: str, index: int, top: int) -> dict[str, Any]:
    # The model is sure of the token to 55 up to 99 %, so it is the likeliest.
    share = 0.55 + crc32(token.encode(), index) % 441 / 1000
    alternatives = [_entry(token, share)] if top else []
    rest, first = 1 - share, index % len(OTHERS)
    for other in (OTHERS[first:] + OTHERS[:first]) if top > 1 else ():
        if len(alternatives) == top:
            break
        if other != token:
            rest /= 2
            alternatives.append(_entry(other, rest))
    return {**_entry(token, share), "top_logprobs": alternatives}


def _entry(token: str, share: float) -> dict[str, Any]:
    return {
        "token": token,
        "logprob": round(math.log(share), 6),
        "bytes": list(token.encode()),
    }
