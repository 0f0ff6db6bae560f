"""The simulated text completions: each prompt is answered as the user message of a chat."""

from typing import Any

from xalen_batch.backends.simulated.constants import CREATED, FINGERPRINT
from xalen_batch.backends.simulated.parameters import check_parameters
from xalen_batch.backends.simulated.prompt import Prompt
from xalen_batch.backends.simulated.refusal import Refusal, checked
from xalen_batch.backends.simulated.writing import stopped, write
from xalen_batch.catalog import Model
from xalen_batch.endpoints import completions, tokens


def completed(model: Model, body: dict[str, Any], digest: bytes) -> dict[str, Any]:
    """The answer to a completions request."""
    check_parameters(body)
    asked = checked(completions.fit(body))
    excess = asked.overflow(model.window)
    if excess is not None:
        raise Refusal(excess.message, code="context_length_exceeded", param="prompt")
    choices: list[dict[str, Any]] = []
    seed, written = int.from_bytes(digest[1:5], "big"), 0
    for text in asked.texts:
        prompt = text if isinstance(text, str) else " ".join(map(str, text))
        for _ in range(asked.n or 1):
            full = stopped(write(Prompt("", prompt, seed + len(choices))), body.get("stop"))
            shown = full if asked.max_tokens is None else tokens.cut(full, asked.max_tokens)
            written += tokens.count(shown)
            choices.append(
                {
                    "index": len(choices),
                    "text": prompt + shown if asked.echo else shown,
                    "logprobs": None,
                    "finish_reason": "stop" if len(shown) == len(full) else "length",
                }
            )
    read = asked.input_tokens(tokens.count)
    return {
        "id": f"cmpl-{digest.hex()}",
        "object": "text_completion",
        "created": CREATED,
        "model": body.get("model"),
        "choices": choices,
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        },
        "system_fingerprint": FINGERPRINT,
    }
