"""Relays the events of a streamed answer to the client, and bills them when they end."""

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import msgspec
import orjson

from xalen_batch import log
from xalen_batch.api.live.requests import LiveCall
from xalen_batch.backends.contract import Event, Events, Request, StreamBroken
from xalen_batch.backends.streams import DONE, rendered
from xalen_batch.backends.usage import usage_of
from xalen_batch.endpoints.chunks import Joined
from xalen_batch.endpoints.names import RESPONSES
from xalen_batch.endpoints.usage import Usage, table
from xalen_batch.endpoints.whole import decoded

logger = log.get(__name__)

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

BROKEN = {
    "error": {
        "message": "The model broke off its answer. Nothing was billed. Send the call again.",
        "type": "server_error",
        "param": None,
        "code": "model_broke_off",
    }
}


def streamed_body(call: LiveCall) -> bytes:
    """The body of a streamed call as the backend gets it: it has to report the usage."""
    if call.endpoint == RESPONSES:
        return call.body
    # Raw: a number stays as the client wrote it.
    fields = _fields(call.body)
    asked = msgspec.json.decode(fields.get("stream_options", b"null"))
    options = {**table(asked), "include_usage": True}
    return msgspec.json.encode({**fields, "stream_options": options})


class Relay:
    """The answer to one streamed call. `bill` is called once, with the usage, if it is billed.

    A client that goes before the end pays for what it was sent, by our own count; otherwise it
    could read an answer without its last event for nothing.
    """

    def __init__(self, call: LiveCall, request: Request, bill: Callable[[Usage], None]) -> None:
        self._call = call
        self._request = request
        self._bill = bill
        self._joined = Joined()
        # The object of a Response's last event.
        self._response: Mapping[str, Any] | None = None
        self._size = 0
        self._wants_usage = bool(table(call.fields.get("stream_options")).get("include_usage"))

    async def body(self, events: Events) -> AsyncGenerator[bytes]:
        """The body of the answer. Leaving it early counts as a client that has gone."""
        is_whole = is_broken = False
        try:
            async for event in events:
                if self._read(event):
                    yield rendered(event)
            is_whole = True
            if self._call.endpoint != RESPONSES:
                yield rendered(Event(DONE))
        except StreamBroken as broken:
            is_broken = True
            logger.info("live.broken", model=self._call.model.id, reason=str(broken))
            yield rendered(Event(orjson.dumps(BROKEN)))
        finally:
            if not is_broken and (is_whole or self._joined.has_begun):
                self._bill(self._usage())

    def _read(self, event: Event) -> bool:
        """Take note of an event; False: the client did not ask for it."""
        self._size += len(event.data)
        fields = decoded(event.data)
        if self._call.endpoint == RESPONSES:
            if isinstance(fields.get("response"), dict) and fields["response"].get("usage"):
                self._response = fields["response"]
            if fields.get("type") == "response.output_text.delta":
                self._joined.add({"choices": [{"text": fields.get("delta")}]})
            return True
        self._joined.add(fields)
        return bool(fields.get("choices")) or self._wants_usage

    def _usage(self) -> Usage:
        if self._call.endpoint != RESPONSES:
            return usage_of(self._joined.completion, self._size, self._request)
        text = {"type": "message", "content": [{"text": self._joined.text}]}
        return usage_of(self._response or {"output": [text]}, self._size, self._request)
