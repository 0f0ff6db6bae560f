"""A simulated answer as server-sent events, in the form of vLLM's streams."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from xalen_batch.backends.contract import Event
from xalen_batch.backends.simulated.model import Answer
from xalen_batch.backends.streams import DONE, rendered
from xalen_batch.endpoints import chunks, response_events
from xalen_batch.endpoints.names import CHAT, COMPLETIONS, RESPONSES
from xalen_batch.endpoints.usage import table
from xalen_batch.endpoints.whole import decoded, whole

STREAMED = (CHAT, COMPLETIONS, RESPONSES)


def of_answer(endpoint: str, body: bytes, answer: Answer) -> tuple[bytes, ...]:
    """The events of an answer, for a request that asks for a stream; empty if it is no stream.

    Errors are whole answers, as are those of the faults `html` and `empty`.
    """
    # Most requests ask for none, and need no second decoding.
    if b'"stream"' not in body:
        return ()
    asked = decoded(body)
    is_answered = answer.status == 200 and answer.body.startswith(b"{")
    if endpoint not in STREAMED or asked.get("stream") is not True or not is_answered:
        return ()
    found = msgspec.json.decode(answer.body)
    if endpoint == RESPONSES:
        return tuple(
            rendered(Event(msgspec.json.encode(fields), name))
            for name, fields in response_events.of_response(found, whole(asked))
        )
    return (
        *(rendered(Event(msgspec.json.encode(each))) for each in _chunks(found, asked)),
        rendered(Event(DONE)),
    )


def _chunks(completion: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    wants_usage = table(asked.get("stream_options")).get("include_usage") is True
    for chunk in chunks.of_completion(completion):
        if chunk["choices"] or (wants_usage and "usage" in completion):
            yield chunk
