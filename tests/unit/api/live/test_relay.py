"""The body of a streamed call as the model gets it."""

from typing import Any, cast

import orjson
import pytest

from xalen_batch.api.live.relay import streamed_body
from xalen_batch.api.live.requests import LiveCall
from xalen_batch.endpoints.names import CHAT, RESPONSES, Endpoint


def body_of(text: str, endpoint: Endpoint = CHAT) -> bytes:
    body, unused = text.encode(), cast(Any, None)
    return streamed_body(LiveCall(unused, unused, endpoint, body, orjson.loads(body), unused))


@pytest.mark.parametrize("options", ["", ', "stream_options": null', ', "stream_options": {}'])
def test_it_asks_for_the_usage(options: str) -> None:
    told = orjson.loads(body_of(f'{{"stream": true{options}}}'))
    assert told == {"stream": True, "stream_options": {"include_usage": True}}


def test_everything_else_stays_as_it_was_written() -> None:
    fields = '"seed":1180591620717411303425,"top_p":1.50e-1,"messages":[ {"a": 1e2} ]'
    text = "{" + fields + ',"stream_options":{"n":1180591620717411303425}}'
    assert body_of(text).decode() == (
        "{" + fields + ',"stream_options":{"n":1180591620717411303425,"include_usage":true}}'
    )


def test_a_response_is_sent_as_it_is() -> None:
    assert body_of('{ "input": 1e2 }', RESPONSES) == b'{ "input": 1e2 }'
