"""Messages bodies as chat bodies, and the words for those that are none."""

from typing import Any

import pytest

from xalen_batch.api.anthropic.params import to_chat
from xalen_batch.endpoints.form import InvalidBody
from xalen_batch.endpoints.names import CHAT
from xalen_batch.endpoints.operations import fit

HELLO = {"role": "user", "content": "Hello"}
BASE: dict[str, Any] = {"model": "mistral-small-3-1", "max_tokens": 64, "messages": [HELLO]}
TOOL = {"name": "look_up", "description": "Look it up", "input_schema": {"type": "object"}}
USE = {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {"q": "é"}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}


def chat(**params: Any) -> dict[str, Any]:
    found = to_chat(BASE | params)
    assert not isinstance(found, InvalidBody), found
    assert not isinstance(fit(found, CHAT, is_reranker=False), InvalidBody)
    return found


def text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}


def test_the_least_and_the_usual_parameters() -> None:
    assert chat() == BASE
    usual = {"temperature": 0.5, "top_p": 0.9, "top_k": 5}
    assert chat(**usual, stop_sequences=["a", "b"], metadata={"user_id": "u"}) == BASE | usual | {
        "stop": ["a", "b"],
        "user": "u",
    }
    ignored = {"service_tier": "auto", "thinking": {"type": "disabled"}, "stream": False}
    assert chat(**ignored) == BASE


@pytest.mark.parametrize("system", ["Be brief.\nBe kind.", [text("Be brief."), text("Be kind.")]])
def test_the_system_is_the_first_message(system: Any) -> None:
    assert chat(system=system)["messages"] == [
        {"role": "system", "content": "Be brief.\nBe kind."},
        HELLO,
    ]


def test_turns_of_one_role_are_joined_and_blocks_converted() -> None:
    url = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    document = {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": "D"},
    }
    messages = [
        HELLO,
        {"role": "user", "content": [text("again")]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "…"}, text("Hi")]},
        {"role": "user", "content": [IMAGE, url, document]},
    ]
    assert chat(messages=messages)["messages"] == [
        {"role": "user", "content": "Hello\nagain"},
        {"role": "assistant", "content": "Hi"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                {"type": "text", "text": "D"},
            ],
        },
    ]


@pytest.mark.parametrize(
    ("content", "shown"), [("r", "r"), ([text("a"), text("b")], "a\nb"), (None, "")]
)
def test_tools_their_calls_and_their_results(content: Any, shown: str) -> None:
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": content}
    found = chat(
        tools=[TOOL, {"type": "custom", "name": "b", "input_schema": {}}],
        messages=[
            HELLO,
            {"role": "assistant", "content": [USE]},
            {"role": "user", "content": [text("so?"), result]},
        ],
    )
    assert found["messages"] == [
        HELLO,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "toolu_1",
                    "type": "function",
                    "function": {"name": "look_up", "arguments": '{"q":"é"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": shown},
        {"role": "user", "content": "so?"},
    ]
    assert found["tools"][0] == {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Look it up",
            "parameters": {"type": "object"},
        },
    }
    assert found["tool_choice"] == "auto"


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        (
            {"type": "tool", "name": "look_up", "disable_parallel_tool_use": True},
            {
                "tool_choice": {"type": "function", "function": {"name": "look_up"}},
                "parallel_tool_calls": False,
            },
        ),
    ],
)
def test_the_choice_of_a_tool(choice: Any, wanted: dict[str, Any]) -> None:
    found = chat(tools=[TOOL], tool_choice=choice)
    assert {key: found[key] for key in wanted} == wanted
    assert "tool_choice" not in chat(tool_choice=choice)


def test_a_schema_of_the_answer() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    found = chat(output_config={"format": {"type": "json_schema", "schema": schema}})
    assert found["response_format"]["json_schema"]["schema"] == schema


def said(content: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content}]}


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"max_tokens": None}, "body.max_tokens"),
        ({"max_tokens": 0}, "body.max_tokens"),
        ({"max_tokens": "9"}, "body.max_tokens"),
        ({"model": 1}, "body.model"),
        ({"messages": []}, "body.messages"),
        ({"messages": "Hello"}, "body.messages"),
        ({"temperature": 1.5}, "body.temperature"),
        ({"top_k": -1}, "body.top_k"),
        ({"stream": True}, "body.stream"),
        ({"stop_sequences": "a"}, "body.stop_sequences"),
        ({"container": "c"}, "body.container"),
        ({"system": [IMAGE]}, "body.system[0].type"),
        ({"system": [{"type": "text"}]}, "body.system[0].text"),
        ({"system": ["a"]}, "body.system[0]"),
        (said("a", "system"), "body.messages[0].role"),
        (said("a", "assistant"), "body.messages[0].role"),
        (said([]), "body.messages[0].content"),
        (said([{"type": "text"}]), "body.messages[0].content[0].text"),
        (said([{}]), "body.messages[0].content[0].type"),
        (said([{"type": ["a"]}]), "body.messages[0].content[0].type"),
        (said([{"type": "image"}]), "body.messages[0].content[0].source"),
        (
            said([{"type": "document", "source": {"type": "url"}}]),
            "body.messages[0].content[0].type",
        ),
        (said([{"type": "tool_result"}]), "body.messages[0].content[0].tool_use_id"),
        (
            said([{"type": "tool_result", "tool_use_id": "a", "content": [IMAGE]}]),
            "body.messages[0].content[0].content[0].type",
        ),
        (
            said([{"type": "tool_result", "tool_use_id": "a", "content": 1}]),
            "body.messages[0].content[0].content",
        ),
        (
            {"messages": [{"role": "assistant", "content": [USE | {"input": "{}"}]}, HELLO]},
            "body.messages[0].content[0]",
        ),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "body.tools[0].type"),
        ({"tools": [{"type": 1, "name": "bash"}]}, "body.tools[0].type"),
        ({"tools": [{"name": "a"}]}, "body.tools[0]"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "body.tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": []}}, "body.tool_choice"),
        ({"output_config": {"format": {"type": "xml"}}}, "body.output_config.format"),
    ],
)
def test_what_is_wrong_is_named(params: dict[str, Any], param: str) -> None:
    found = to_chat({key: value for key, value in (BASE | params).items() if value is not None})
    assert isinstance(found, InvalidBody)
    assert found.param == param
    assert found.message
