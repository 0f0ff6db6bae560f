"""The body of a Messages request as a chat request.

| Messages | chat |
|---|---|
| `system` | the first message, of the system |
| a `tool_result` block | a tool message, before the text of its turn |
| a `tool_use` block | a tool call of the assistant's message |
| `thinking` blocks, `cache_control` | left out: a chat has no place for them |
| `stop_sequences`, `metadata.user_id` | `stop`, `user` |
| `tool_choice.disable_parallel_tool_use` | `parallel_tool_calls: false` |
| `output_config.format` | `response_format` |
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import orjson
from msgspec import Meta, Struct

from xalen_batch.endpoints.form import Count, InvalidBody, typed
from xalen_batch.endpoints.responses_chat import InvalidItem
from xalen_batch.endpoints.usage import table
from xalen_batch.errors import quoted

_HINTS = {
    "max_tokens": "Send the most tokens of the answer, at least 1.",
    "messages": 'Send a list such as [{"role": "user", "content": "Hello"}].',
    "system": "Send a string, or a list of text blocks.",
    "stop_sequences": "Send a list of strings.",
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# Blocks of an earlier answer that a chat has no place for, and whose text the model wrote itself.
_DROPPED = ("thinking", "redacted_thinking")
# Parameters that ask for something that no model here does. Others that are not listed are ignored.
_REFUSED = {
    "container": "There are no containers here. Leave container out.",
    "mcp_servers": "No MCP servers are called from here. Leave mcp_servers out.",
    "context_management": "The context is sent as it is. Leave context_management out.",
}


class _Message(Struct):
    role: str
    content: str | Annotated[list[dict[str, Any]], Meta(min_length=1)]


class _Params(Struct):
    """The parameters that are read. Anthropic's ranges; the backend may have narrower ones."""

    model: str
    max_tokens: Count
    messages: Annotated[list[_Message], Meta(min_length=1)]
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None


def to_chat(params: Mapping[str, Any]) -> dict[str, Any] | InvalidBody:
    """The chat request of a Messages request, or its first error."""
    form = typed(params, _Params, _HINTS)
    if isinstance(form, InvalidBody):
        return form
    try:
        return _chat(form, params)
    except InvalidItem as invalid:
        return invalid.body


def _chat(form: _Params, params: Mapping[str, Any]) -> dict[str, Any]:
    for name, remedy in _REFUSED.items():
        if params.get(name):
            raise InvalidItem(f"body.{name}", remedy)
    if form.stream:
        raise InvalidItem("body.stream", "A batch has no stream to send. Leave stream out.")
    chat: dict[str, Any] = {
        "model": form.model,
        "messages": [*_system(form.system), *_messages(form.messages)],
        "max_tokens": form.max_tokens,
    }
    same = ("temperature", "top_p", "top_k")
    chat |= {name: getattr(form, name) for name in same if getattr(form, name) is not None}
    if form.stop_sequences:
        chat["stop"] = form.stop_sequences
    if form.tools:
        chat["tools"] = [_tool(tool, f"body.tools[{n}]") for n, tool in enumerate(form.tools)]
        chat |= _tool_choice(form.tool_choice or {})
    user = table(form.metadata).get("user_id")
    if isinstance(user, str):
        chat["user"] = user
    schema = table(table(form.output_config).get("format"))
    if schema:
        chat["response_format"] = _response_format(schema)
    return chat


def _system(system: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    if not system:
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}]
    texts = [_text(block, f"body.system[{n}]") for n, block in enumerate(system)]
    return [{"role": "system", "content": "\n".join(texts)}]


def _messages(messages: list[_Message]) -> Iterable[dict[str, Any]]:
    """The chat's messages. Consecutive ones of one role are one turn, as in Anthropic's API."""
    turns: list[tuple[str, list[tuple[str, dict[str, Any]]]]] = []
    for number, message in enumerate(messages):
        param = f"body.messages[{number}]"
        if message.role not in ("user", "assistant"):
            raise InvalidItem(
                f"{param}.role",
                f"{quoted(message.role)} is not a role. Use user or assistant, and `system` for"
                " the system's prompt.",
            )
        if not turns or turns[-1][0] != message.role:
            turns.append((message.role, []))
        turns[-1][1].extend(_blocks(message.content, f"{param}.content"))
    if turns[-1][0] == "assistant":
        raise InvalidItem(
            f"body.messages[{len(messages) - 1}].role",
            "The last message must be the user's: the models here do not continue an answer that"
            " the request begins.",
        )
    for role, blocks in turns:
        if role == "user":
            yield from _user(blocks)
        else:
            yield _assistant(blocks)


def _blocks(content: str | list[dict[str, Any]], param: str) -> list[tuple[str, dict[str, Any]]]:
    """The blocks of a content, each with its path in the line."""
    if isinstance(content, str):
        return [(param, {"type": "text", "text": content})]
    return [(f"{param}[{number}]", block) for number, block in enumerate(content)]


def _user(blocks: list[tuple[str, dict[str, Any]]]) -> Iterable[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for param, block in blocks:
        if block.get("type") == "tool_result":
            yield _tool_message(block, param)
        else:
            parts.append(_part(block, param))
    if not parts:
        return
    if all(part["type"] == "text" for part in parts):
        # Servers take a list of texts at some roles only.
        yield {"role": "user", "content": "\n".join(part["text"] for part in parts)}
    else:
        yield {"role": "user", "content": parts}


def _assistant(blocks: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for param, block in blocks:
        kind = block.get("type")
        if kind == "tool_use":
            calls.append(_call(block, param))
        elif kind not in _DROPPED:
            texts.append(_text(block, param))
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts) or None}
    if calls:
        return message | {"tool_calls": calls}
    return message | {"content": message["content"] or ""}


def _text(block: Any, param: str) -> str:
    text = table(block).get("text")
    if table(block).get("type") != "text" or not isinstance(text, str):
        kind = table(block).get("type")
        raise InvalidItem(
            f"{param}.type" if kind != "text" else f"{param}.text",
            f"A text block is needed here, with `type` and `text`; this one is {quoted(kind)}.",
        )
    return text


def _part(block: dict[str, Any], param: str) -> dict[str, Any]:
    kind, source = block.get("type"), table(block.get("source"))
    if kind == "image":
        return {"type": "image_url", "image_url": {"url": _url(source, param)}}
    if kind == "document" and source.get("type") == "text" and isinstance(source.get("data"), str):
        return {"type": "text", "text": source["data"]}
    if kind != "text":
        raise InvalidItem(
            f"{param}.type",
            f"Blocks of the type {quoted(kind)} are not read here. Use text, image, tool_result, or"
            " a document whose source is text.",
        )
    return {"type": "text", "text": _text(block, param)}


def _url(source: Mapping[str, Any], param: str) -> str:
    kind, data, media = source.get("type"), source.get("data"), source.get("media_type")
    if kind == "url" and isinstance(source.get("url"), str):
        return str(source["url"])
    if kind == "base64" and isinstance(data, str) and isinstance(media, str):
        return f"data:{media};base64,{data}"
    raise InvalidItem(
        f"{param}.source",
        "Send an image as base64 with `media_type` and `data`, or as a url; files are not kept"
        " for it.",
    )


def _tool_message(block: dict[str, Any], param: str) -> dict[str, Any]:
    call = block.get("tool_use_id")
    if not isinstance(call, str) or not call:
        raise InvalidItem(f"{param}.tool_use_id", "Name the tool_use block that it answers.")
    content = block.get("content")
    if isinstance(content, list):
        texts = [_text(each, f"{param}.content[{n}]") for n, each in enumerate(content)]
        content = "\n".join(texts)
    if content is not None and not isinstance(content, str):
        raise InvalidItem(f"{param}.content", "Send a string, or a list of text blocks.")
    return {"role": "tool", "tool_call_id": call, "content": content or ""}


def _call(block: dict[str, Any], param: str) -> dict[str, Any]:
    id, name, given = block.get("id"), block.get("name"), block.get("input")
    if not isinstance(id, str) or not isinstance(name, str) or not isinstance(given, dict):
        raise InvalidItem(param, "A tool_use block needs an `id`, a `name` and an `input` object.")
    arguments = orjson.dumps(given).decode()
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _tool(tool: dict[str, Any], param: str) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise InvalidItem(
            f"{param}.type",
            f"Tools of the type {quoted(tool['type'])} do not run here. Use tools of your own, with"
            " `name` and `input_schema`.",
        )
    if not isinstance(tool.get("name"), str) or not isinstance(tool.get("input_schema"), dict):
        raise InvalidItem(param, "A tool needs a `name` and an `input_schema` object.")
    function = {"name": tool["name"], "parameters": tool["input_schema"]}
    if isinstance(tool.get("description"), str):
        function["description"] = tool["description"]
    if isinstance(tool.get("strict"), bool):
        function["strict"] = tool["strict"]
    return {"type": "function", "function": function}


def _tool_choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    kind = choice.get("type", "auto")
    if kind == "tool" and isinstance(choice.get("name"), str):
        chosen["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
    elif isinstance(kind, str) and kind in _CHOICES:
        chosen["tool_choice"] = _CHOICES[kind]
    else:
        raise InvalidItem(
            "body.tool_choice", "Use the type auto, any or none, or tool with the tool's `name`."
        )
    if choice.get("disable_parallel_tool_use") is True:
        chosen["parallel_tool_calls"] = False
    return chosen


def _response_format(form: Mapping[str, Any]) -> dict[str, Any]:
    if form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise InvalidItem(
            "body.output_config.format", "Use the type json_schema, with a `schema` object."
        )
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": form["schema"]}}


def param_of(param: str) -> str:
    """The path of a parameter as the author of a request has it: `body.…` is `params.…`."""
    return f"params{param.removeprefix('body')}" if param.startswith("body") else param
