"""The simulated Responses: each is answered as a chat, and given back as a Response."""

from typing import Any

from xalen_batch.backends.simulated.chat import chatted
from xalen_batch.backends.simulated.constants import FINGERPRINT
from xalen_batch.backends.simulated.refusal import Refusal, checked
from xalen_batch.catalog import Model
from xalen_batch.endpoints import responses
from xalen_batch.endpoints.responses_chat import InvalidItem, from_chat, to_chat
from xalen_batch.endpoints.usage import Usage


def responded(model: Model, body: dict[str, Any], digest: bytes) -> dict[str, Any]:
    """The answer to a Response's request over HTTP. In a worker, ResponsesChat translates it."""
    checked(responses.fit(body))
    try:
        chat = to_chat(body)
    except InvalidItem as invalid:
        raise Refusal(invalid.body.message, param=invalid.body.param) from invalid
    completion = chatted(model, chat, digest)
    stated = completion["usage"]
    usage = Usage(stated["prompt_tokens"], stated["completion_tokens"])
    return {
        **from_chat(completion, body, digest.hex(), usage),
        "system_fingerprint": FINGERPRINT,
    }
