"""A Response as a chat completion, and back, for backends that only have the chat endpoint.

| Response | chat completion |
|---|---|
| `instructions` | the first message, of the system |
| `input`, a string | one user message |
| `input`, items | a message each; `function_call` items join the assistant's message before them |
| `function_call_output` | a tool message |
| `max_output_tokens`, `text.format` | `max_tokens`, `response_format` |
| `reasoning.effort` | `reasoning_effort` |
| `include` of LOGPROBS, `top_logprobs` | `logprobs`, `top_logprobs` |
"""

from collections.abc import Mapping
from typing import Any

from xalen_batch.endpoints.form import InvalidBody
from xalen_batch.endpoints.usage import RESPONSE_KEYS, Usage, standard, table

ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
LOGPROBS = "message.output_text.logprobs"
TEXTS = ("input_text", "output_text", "text")
# Fields that mean the same at both endpoints.
_SAME = (
    "model",
    "temperature",
    "top_p",
    "user",
    "metadata",
    "stream",
)


class InvalidItem(Exception):
    """A part of a request that is not as its type demands."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.body = InvalidBody(param, message)


class NotChat(InvalidItem):
    """A part of a request that no chat completion has; a backend with its own endpoint may."""


def to_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """The chat request of a Response's request. Raises InvalidItem."""
    messages = _messages(body.get("instructions"), body.get("input"))
    chat = {key: body[key] for key in _SAME if body.get(key) is not None}
    chat["messages"] = messages
    if body.get("max_output_tokens") is not None:
        chat["max_tokens"] = body["max_output_tokens"]
    if effort := table(body.get("reasoning")).get("effort"):
        chat["reasoning_effort"] = effort
    if body.get("tools"):
        chat["tools"] = [_tool(tool, index) for index, tool in enumerate(body["tools"])]
        if body.get("tool_choice") is not None:
            chat["tool_choice"] = _tool_choice(body["tool_choice"])
        # Chat servers refuse it without tools.
        if body.get("parallel_tool_calls") is not None:
            chat["parallel_tool_calls"] = body["parallel_tool_calls"]
    if _wants_logprobs(body):
        chat["logprobs"] = True
        if body.get("top_logprobs") is not None:
            chat["top_logprobs"] = body["top_logprobs"]
    form = table(table(body.get("text")).get("format"))
    if form:
        chat["response_format"] = _response_format(form)
    return chat


def _wants_logprobs(body: Mapping[str, Any]) -> bool:
    include = body.get("include")
    return isinstance(include, list) and LOGPROBS in include


def _messages(instructions: Any, given: Any) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    for index, item in enumerate(given):
        _add(messages, table(item), f"body.input[{index}]")
    return messages


def _add(messages: list[dict[str, Any]], item: Mapping[str, Any], param: str) -> None:
    """Append an item to the messages; a function call may join the last one."""
    kind = item.get("type") or "message"
    if kind == "message":
        messages.append(_message(item, param))
    elif kind == "function_call":
        name, arguments = item.get("name"), item.get("arguments")
        if not isinstance(name, str) or not isinstance(arguments, str):
            raise InvalidItem(param, "A function_call needs a `name` and `arguments`, as strings.")
        call = {
            "id": _call_id(item, param),
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        messages.append(
            {
                "role": "tool",
                "tool_call_id": _call_id(item, param),
                "content": _text(item.get("output"), f"{param}.output"),
            }
        )
    elif kind != "reasoning":
        # A chat has no place for the reasoning of an earlier answer, and needs none.
        raise NotChat(
            f"{param}.type",
            f"Items of the type {str(kind)[:60]!r} need a backend with its own /v1/responses.",
        )


def _call_id(item: Mapping[str, Any], param: str) -> str:
    call_id = item.get("call_id")
    if not isinstance(call_id, str) or not call_id:
        raise InvalidItem(
            f"{param}.call_id", "Name the call, as in the function_call that asked for it."
        )
    return call_id


def _message(item: Mapping[str, Any], param: str) -> dict[str, Any]:
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidItem(f"{param}.role", f"Use one of: {', '.join(ROLES)}.")
    content = item.get("content")
    if isinstance(content, str):
        return {"role": ROLES[role], "content": content}
    if not isinstance(content, list) or not content:
        raise InvalidItem(
            f"{param}.content", "Give the message a `content`: a string or a list of parts."
        )
    parts = [
        _part(table(part), f"{param}.content[{number}]") for number, part in enumerate(content)
    ]
    if all(part["type"] == "text" for part in parts):
        # Servers take a list of texts at some roles only.
        return {"role": ROLES[role], "content": "".join(part["text"] for part in parts)}
    return {"role": ROLES[role], "content": parts}


def _part(part: Mapping[str, Any], param: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind in TEXTS or kind == "refusal":
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise InvalidItem(f"{param}.text", f"A part of type {kind} needs its text, a string.")
        return {"type": "text", "text": text}
    if kind == "input_image":
        url = part.get("image_url")
        if not isinstance(url, str):
            raise NotChat(
                f"{param}.image_url", "Only a backend with its own /v1/responses reads file ids."
            )
        detail = {"detail": part["detail"]} if isinstance(part.get("detail"), str) else {}
        return {"type": "image_url", "image_url": {"url": url, **detail}}
    if kind == "input_file":
        named = ("file_data", "file_id", "filename")
        return {"type": "file", "file": {key: part[key] for key in named if key in part}}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    raise InvalidItem(
        f"{param}.type",
        "Use input_text, output_text, refusal, input_image, input_file or input_audio.",
    )


def _text(output: Any, param: str) -> str:
    if isinstance(output, str):
        return output
    if not isinstance(output, list):
        raise InvalidItem(param, "Give the output as a string or as a list of parts.")
    parts = [_part(table(part), f"{param}[{number}]") for number, part in enumerate(output)]
    if any(part["type"] != "text" for part in parts):
        raise NotChat(param, "Only a backend with its own /v1/responses reads pictures in outputs.")
    return "".join(part["text"] for part in parts)


def _tool(tool: Any, index: int) -> dict[str, Any]:
    tool = table(tool)
    kind, param = tool.get("type"), f"body.tools[{index}]"
    if kind != "function":
        raise NotChat(
            f"{param}.type",
            f"Tools of the type {str(kind)[:60]!r} need a backend with its own /v1/responses.",
        )
    if not isinstance(tool.get("name"), str):
        raise InvalidItem(f"{param}.name", "Name the function.")
    keys = ("name", "description", "parameters", "strict")
    function = {key: tool[key] for key in keys if tool.get(key) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return choice
    asked = table(choice)
    if asked.get("type") != "function" or not isinstance(asked.get("name"), str):
        raise NotChat(
            "body.tool_choice",
            "Use auto, none, required or a function; others need a backend with its own"
            " /v1/responses.",
        )
    return {"type": "function", "function": {"name": asked["name"]}}


def _response_format(form: Mapping[str, Any]) -> dict[str, Any]:
    kind = form.get("type")
    if kind in ("text", "json_object"):
        return {"type": kind}
    if kind != "json_schema":
        raise InvalidItem("body.text.format.type", "Use text, json_object or json_schema.")
    if not isinstance(form.get("name"), str) or not isinstance(form.get("schema"), dict):
        raise InvalidItem("body.text.format", "A json_schema needs a `name` and a `schema`.")
    keys = ("name", "schema", "strict", "description")
    return {
        "type": "json_schema",
        "json_schema": {key: form[key] for key in keys if form.get(key) is not None},
    }


def from_chat(
    completion: Mapping[str, Any], asked: Mapping[str, Any], id: str, usage: Usage
) -> dict[str, Any]:
    """The Response of a chat completion's first choice. `asked` is the Response's request.

    `id` names the response and its items, without a prefix.
    """
    choice = table(next(iter(completion["choices"]), None))
    reason = choice.get("finish_reason")
    reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
    cut = reasons.get(reason) if isinstance(reason, str) else None
    status = "incomplete" if cut else "completed"
    logprobs = logprobs_of(choice) if _wants_logprobs(asked) else None
    output = _output(table(choice.get("message")), id, logprobs)
    if cut:
        # Those before it are whole.
        output[-1]["status"] = "incomplete"
    return {
        **frame(asked, id, completion.get("created"), status, output),
        "incomplete_details": {"reason": cut} if cut else None,
        "usage": standard(usage, RESPONSE_KEYS),
    }


def to_completion(response: Mapping[str, Any]) -> dict[str, Any]:
    """The chat completion, without usage, of a Response that `from_chat` has made of one."""
    items = response["output"]
    parts = [part for item in items if item["type"] == "message" for part in item["content"]]
    texts = [part for part in parts if part["type"] == "output_text"]
    message: dict[str, Any] = {"content": "".join(part["text"] for part in texts)}
    message["tool_calls"] = [
        {
            "id": item["call_id"],
            "type": "function",
            "function": {key: item[key] for key in ("name", "arguments")},
        }
        for item in items
        if item["type"] == "function_call"
    ]
    cut = table(response["incomplete_details"]).get("reason")
    choice = {
        "index": 0,
        "message": message,
        "logprobs": {"content": [entry for part in texts for entry in part.get("logprobs", ())]},
        "finish_reason": "length" if cut else "stop",
    }
    return {"object": "chat.completion", "choices": [choice]}


def frame(
    asked: Mapping[str, Any], id: str, created_at: int | None, status: str, output: list[Any]
) -> dict[str, Any]:
    """A Response with this output, and without usage."""
    return {
        "id": f"resp_{id}",
        "object": "response",
        "created_at": created_at,
        "status": status,
        "error": None,
        "incomplete_details": None,
        **_echoed(asked),
        "model": asked.get("model"),
        "output": output,
        "usage": None,
    }


# The fields of a request that its response repeats, with their defaults.
_DEFAULTS: Mapping[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": False,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


def _echoed(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: default if asked.get(key) is None else asked[key] for key, default in _DEFAULTS.items()
    }


def logprobs_of(choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The logprobs of a choice's text, in the form of a Response."""
    content = table(choice.get("logprobs")).get("content")
    return [
        {**_logprob(entry), "top_logprobs": [*map(_logprob, _tables(entry.get("top_logprobs")))]}
        for entry in _tables(content)
    ]


def _logprob(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "token": entry.get("token"),
        "logprob": entry.get("logprob"),
        "bytes": entry.get("bytes") or [],
    }


def _tables(entries: Any) -> list[Mapping[str, Any]]:
    return [each for each in entries if table(each)] if isinstance(entries, list) else []


def reasoning_of(message: Mapping[str, Any]) -> str | None:
    """The reasoning of a chat's message or delta, by either of its names."""
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    return reasoning if isinstance(reasoning, str) else None


def _output(
    message: Mapping[str, Any], id: str, logprobs: list[dict[str, Any]] | None
) -> list[dict[str, Any]]:
    """The items of an assistant's message: its reasoning, its text or refusal, its calls."""
    items: list[dict[str, Any]] = []
    reasoning = reasoning_of(message)
    if reasoning is not None:
        content = [{"type": "reasoning_text", "text": reasoning}]
        items.append({"id": f"rs_{id}", "type": "reasoning", "summary": [], "content": content})
    asked = {} if logprobs is None else {"logprobs": logprobs}
    parts: list[dict[str, Any]] = []
    if isinstance(message.get("content"), str) and message["content"]:
        parts.append(_text_part(message["content"], asked))
    if isinstance(message.get("refusal"), str):
        parts.append({"type": "refusal", "refusal": message["refusal"]})
    calls = message.get("tool_calls")
    calls = [table(call) for call in calls] if isinstance(calls, list) else []
    if parts or not calls:
        parts = parts or [_text_part("", asked)]
        items.append(
            {
                "id": f"msg_{id}",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": parts,
            }
        )
    for index, call in enumerate(calls):
        function = table(call.get("function"))
        items.append(
            {
                "id": f"fc_{id}_{index}",
                "type": "function_call",
                "call_id": call.get("id") or f"call_{id}_{index}",
                "name": function.get("name") or "",
                "arguments": function.get("arguments") or "",
                "status": "completed",
            }
        )
    return items


def _text_part(text: str, more: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], **more}
