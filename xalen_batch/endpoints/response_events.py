"""The events of a streamed Response, made of the chunks of a chat completion."""

from collections.abc import Iterator, Mapping
from typing import Any

from xalen_batch.endpoints import responses_chat
from xalen_batch.endpoints.chunks import Joined
from xalen_batch.endpoints.usage import Usage, table


class ResponseEvents:
    """Turns the chunks of one completion into events, each a name and an object.

    `id` names the response and its items, without a prefix.
    """

    def __init__(self, asked: Mapping[str, Any], id: str, created_at: int) -> None:
        self.joined = Joined()
        self._asked = asked
        self._id = id
        self._created_at = created_at
        self._number = 0
        self._has_text = False
        self._calls = 0

    def begin(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events before the first chunk."""
        response = self._response("in_progress", [])
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    def add(self, chunk: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events of the next chunk."""
        self.joined.add(chunk)
        for choice in chunk.get("choices") or ():
            delta = table(table(choice).get("delta"))
            text = delta.get("content")
            if isinstance(text, str) and text:
                yield from self._text(text)

    def end(self, usage: Usage) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events after the last chunk; the last one has the whole response."""
        completion = {
            "created": self._created_at,
            "choices": [
                {
                    "message": {
                        "content": self.joined.text,
                        "tool_calls": [
                            {
                                "id": call["id"],
                                "function": {
                                    "name": call["name"],
                                    "arguments": call["arguments"],
                                },
                            }
                            for call in self.joined.calls
                        ],
                    },
                    "finish_reason": self.joined.finish_reason,
                }
            ],
        }
        response = responses_chat.from_chat(completion, self._asked, self._id, usage)
        for index, item in enumerate(response["output"]):
            yield from self._item(index, item)
        yield self._event(f"response.{response['status']}", response=response)

    def _text(self, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
        where = {"item_id": f"msg_{self._id}", "output_index": 0, "content_index": 0}
        if not self._has_text:
            self._has_text = True
            yield from self._opened()
        yield self._event("response.output_text.delta", **where, delta=text, logprobs=[])

    def _opened(self) -> Iterator[tuple[str, dict[str, Any]]]:
        item = {
            "id": f"msg_{self._id}",
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event(
            "response.content_part.added",
            item_id=item["id"],
            output_index=0,
            content_index=0,
            part={"type": "output_text", "text": "", "annotations": []},
        )

    def _item(self, index: int, item: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events that end an item, and those that begin one that had no events yet."""
        if item["type"] == "message":
            if not self._has_text:
                yield from self._opened()
            for number, part in enumerate(item["content"]):
                where = {"item_id": item["id"], "output_index": index, "content_index": number}
                if part["type"] == "output_text":
                    yield self._event(
                        "response.output_text.done", **where, text=part["text"], logprobs=[]
                    )
                yield self._event("response.content_part.done", **where, part=part)
        elif item["type"] == "function_call":
            begun = {**item, "arguments": "", "status": "in_progress"}
            yield self._event("response.output_item.added", output_index=index, item=begun)
            where = {"item_id": item["id"], "output_index": index}
            arguments = item["arguments"]
            yield self._event("response.function_call_arguments.delta", **where, delta=arguments)
            yield self._event(
                "response.function_call_arguments.done",
                **where,
                arguments=arguments,
                name=item["name"],
            )
        yield self._event("response.output_item.done", output_index=index, item=item)

    def _response(self, status: str, output: list[Any]) -> dict[str, Any]:
        return responses_chat.frame(self._asked, self._id, self._created_at, status, output)

    def _event(self, kind: str, /, **fields: Any) -> tuple[str, dict[str, Any]]:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return kind, event
