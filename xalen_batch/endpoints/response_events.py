"""The events of a streamed Response, made of the chunks of a chat completion."""

from collections.abc import Iterator, Mapping
from typing import Any

from xalen_batch.endpoints import chunks, responses_chat
from xalen_batch.endpoints.chunks import Joined
from xalen_batch.endpoints.usage import Usage, table


def of_response(
    response: Mapping[str, Any], asked: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a stream whose last event has this response, which `from_chat` has made."""
    id = response["id"].removeprefix("resp_")
    told = ResponseEvents(asked, id, response["created_at"])
    yield from told.begin()
    for chunk in chunks.of_completion(responses_chat.to_completion(response)):
        yield from told.add(chunk)
    *before, (name, last) = told.end(Usage())
    yield from before
    yield name, {**last, "response": response}


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
        self._reasoning: list[str] = []
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._logprobs: list[Any] = []

    def begin(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events before the first chunk."""
        response = self._response("in_progress", [])
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    def add(self, chunk: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events of the next chunk."""
        self.joined.add(chunk)
        for choice in chunk.get("choices") or ():
            choice = table(choice)
            # A Response has one choice.
            if not choice.get("index"):
                yield from self._delta(choice)

    def end(self, usage: Usage) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events after the last chunk; the last one has the whole response."""
        message = {
            "content": "".join(self._text),
            "reasoning_content": "".join(self._reasoning) or None,
            "refusal": "".join(self._refusal) or None,
            "tool_calls": [
                {"id": call["id"], "function": {key: call[key] for key in ("name", "arguments")}}
                for call in self.joined.calls
            ],
        }
        choice = {
            "message": message,
            "logprobs": {"content": self._logprobs},
            "finish_reason": self.joined.finish_reason,
        }
        completion = {"created": self._created_at, "choices": [choice]}
        response = responses_chat.from_chat(completion, self._asked, self._id, usage)
        for index, item in enumerate(response["output"]):
            yield from self._item(index, item)
        yield self._event(f"response.{response['status']}", response=response)

    def _delta(self, choice: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        delta, logprobs = table(choice.get("delta")), responses_chat.logprobs_of(choice)
        thought, text = responses_chat.reasoning_of(delta), delta.get("content")
        # The place of the message is fixed with its first text.
        if thought and (self._reasoning or not self._text):
            yield from self._think(thought)
        self._logprobs += logprobs
        if isinstance(text, str) and text:
            yield from self._say(text, logprobs)
        if isinstance(delta.get("refusal"), str):
            self._refusal.append(delta["refusal"])

    def _think(self, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
        where = {"item_id": f"rs_{self._id}", "output_index": 0}
        if not self._reasoning:
            item = {"id": where["item_id"], "type": "reasoning", "summary": []}
            yield self._event("response.output_item.added", output_index=0, item=item)
        self._reasoning.append(text)
        yield self._event("response.reasoning_text.delta", **where, content_index=0, delta=text)

    def _say(self, text: str, logprobs: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        index = int(bool(self._reasoning))
        where = {"item_id": f"msg_{self._id}", "output_index": index, "content_index": 0}
        if not self._text:
            yield self._opened(index)
            yield self._event(
                "response.content_part.added",
                **where,
                part={"type": "output_text", "text": "", "annotations": []},
            )
        self._text.append(text)
        yield self._event("response.output_text.delta", **where, delta=text, logprobs=logprobs)

    def _opened(self, index: int) -> tuple[str, dict[str, Any]]:
        item = {
            "id": f"msg_{self._id}",
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        return self._event("response.output_item.added", output_index=index, item=item)

    def _item(self, index: int, item: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events that end an item, and those that begin one that had no events yet."""
        if item["type"] == "reasoning":
            yield self._event(
                "response.reasoning_text.done",
                item_id=item["id"],
                output_index=index,
                content_index=0,
                text=item["content"][0]["text"],
            )
        elif item["type"] == "message":
            if not self._text:
                yield self._opened(index)
            for number, part in enumerate(item["content"]):
                where = {"item_id": item["id"], "output_index": index, "content_index": number}
                is_text = part["type"] == "output_text"
                key = "text" if is_text else "refusal"
                if number or not self._text:
                    empty = {**part, key: ""}
                    yield self._event("response.content_part.added", **where, part=empty)
                ended = {"logprobs": part.get("logprobs", [])} if is_text else {}
                kind = "response.output_text.done" if is_text else "response.refusal.done"
                yield self._event(kind, **where, **ended, **{key: part[key]})
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
