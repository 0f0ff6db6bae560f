"""Chat completions and text completions as the chunks of a stream, and back."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from xalen_batch.endpoints.usage import table

# The fields of a delta whose text the model wrote.
TEXTS = ("content", "reasoning_content", "reasoning", "refusal")
# A piece of a text: a word with the blanks before it, as a token has them.
PIECE = re.compile(r"\s*\S+|\s+$")


def of_completion(completion: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The chunks of a completion, the last with its usage."""
    is_chat = completion.get("object") == "chat.completion"
    head = {
        **{key: completion[key] for key in ("id", "created", "model") if key in completion},
        "object": "chat.completion.chunk" if is_chat else "text_completion",
    }
    if "system_fingerprint" in completion:
        head["system_fingerprint"] = completion["system_fingerprint"]
    for choice in completion["choices"]:
        index = choice["index"]
        for part in _deltas(choice) if is_chat else _texts(choice):
            yield {
                **head,
                "choices": [{"index": index, **part, "logprobs": None, "finish_reason": None}],
            }
        end: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
        yield {
            **head,
            "choices": [
                {
                    "index": index,
                    **end,
                    "logprobs": choice.get("logprobs"),
                    "finish_reason": choice["finish_reason"],
                }
            ],
        }
    yield {**head, "choices": [], "usage": completion.get("usage")}


def _deltas(choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    message = choice["message"]
    yield {"delta": {"role": "assistant", "content": ""}}
    for piece in PIECE.findall(message.get("content") or ""):
        yield {"delta": {"content": piece}}
    if message.get("refusal"):
        yield {"delta": {"refusal": message["refusal"]}}
    for index, call in enumerate(message.get("tool_calls") or ()):
        yield {"delta": {"tool_calls": [{"index": index, **call}]}}
    if message.get("function_call"):
        yield {"delta": {"function_call": message["function_call"]}}


def _texts(choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for piece in PIECE.findall(choice["text"]):
        yield {"text": piece}


class Joined:
    """A completion put together from the chunks that have arrived; keeps only text and usage."""

    def __init__(self) -> None:
        self.usage: Any = None
        self.finish_reason: str | None = None
        self._texts: dict[int, list[str]] = {}
        self._calls: dict[tuple[int, int], dict[str, str]] = {}

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Add the next chunk."""
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices") or ():
            choice = table(choice)
            index = choice.get("index") or 0
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            delta = table(choice.get("delta"))
            for text in (
                choice.get("text"),
                *(delta.get(name) for name in TEXTS),
            ):
                if isinstance(text, str) and text:
                    self._texts.setdefault(index, []).append(text)
            for call in delta.get("tool_calls") or ():
                self._add_call(index, table(call))
            # The older form, of one call.
            if table(delta.get("function_call")):
                self._add_call(index, {"function": delta["function_call"]})

    def _add_call(self, choice: int, call: Mapping[str, Any]) -> None:
        function = table(call.get("function"))
        known = self._calls.setdefault(
            (choice, call.get("index") or 0), {"id": "", "name": "", "arguments": ""}
        )
        known["id"] = call.get("id") or known["id"]
        known["name"] += function.get("name") or ""
        known["arguments"] += function.get("arguments") or ""

    @property
    def has_begun(self) -> bool:
        return bool(self._texts or self._calls)

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return "".join(self._texts.get(0, ()))

    @property
    def calls(self) -> list[dict[str, str]]:
        """The calls of the first choice: id, name and arguments of each."""
        return [call for (choice, _), call in sorted(self._calls.items()) if choice == 0]

    @property
    def completion(self) -> dict[str, Any]:
        """What there is, in the form of both endpoints, to count its tokens."""
        return {
            "choices": [
                {
                    "text": "".join(texts),
                    "message": {
                        "content": "".join(texts),
                        "tool_calls": [
                            call for (of, _), call in self._calls.items() if of == index
                        ],
                    },
                }
                for index, texts in (self._texts or {0: []}).items()
            ],
            "usage": self.usage,
        }
