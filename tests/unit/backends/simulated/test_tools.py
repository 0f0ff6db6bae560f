"""Tool calls: which are made, their arguments and usage, and invalid tools."""

from typing import Any

import orjson
import pytest

from tests.unit.backends.simulated.asking import ask, choice, completion, error, fault, said
from tests.unit.backends.simulated.schemas.judge import judge
from xalen_batch.endpoints import tokens


def tool(name: str, parameters: Any = None, description: str | None = None) -> dict[str, Any]:
    function = {"name": name, "description": description, "parameters": parameters}
    return {
        "type": "function",
        "function": {key: value for key, value in function.items() if value is not None},
    }


PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1},
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = tool("get_weather", PARAMETERS, "The forecast of a city")
REFUND = tool("refundOrder", {"type": "object", "properties": {"id": {"type": "integer"}}})
NOW = tool("now")
ASKS = said("What is the weather in Paris?")
NAMED = {"type": "function", "function": {"name": "now"}}


def called(**body: Any) -> list[str]:
    """The names of the functions that are called."""
    made = choice(**body)
    calls = made["message"].get("tool_calls", [])
    assert made["finish_reason"] == ("tool_calls" if calls else "stop")
    assert (made["message"]["content"] is None) == bool(calls)
    return [call["function"]["name"] for call in calls]


def test_arguments_fit_the_parameters_and_are_counted() -> None:
    body = completion(messages=ASKS, tools=[WEATHER])
    (call,) = body["choices"][0]["message"]["tool_calls"]
    judge(PARAMETERS, orjson.loads(call["function"]["arguments"]))
    assert (call["type"], call["id"][:5]) == ("function", "call_")
    written = tokens.count("get_weather") + tokens.count(call["function"]["arguments"])
    assert body["usage"]["completion_tokens"] == written
    assert body["usage"]["prompt_tokens"] == tokens.count_chat(ASKS, tools=[WEATHER])


class TestChoice:
    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("What is the weather in Paris?", ["get_weather"]),
            ("The forecast, please.", ["get_weather"]),
            ("Refund my order of last week!", ["refundOrder"]),
            (
                "Check the weather, then refund order 7 of that city.",
                ["refundOrder", "get_weather"],
            ),
            ("Hello there", []),
            ("", []),
        ],
    )
    def test_auto_calls_what_shares_a_word_with_the_user(self, text: str, names: list[str]) -> None:
        for tool_choice in (None, "auto"):
            assert sorted(
                called(messages=said(text), tools=[WEATHER, REFUND, NOW], tool_choice=tool_choice)
            ) == sorted(names)

    def test_auto_answers_in_text_after_a_result(self) -> None:
        result = [
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            {"role": "tool", "tool_call_id": "1", "content": "21 °C"},
        ]
        assert called(messages=ASKS + result, tools=[WEATHER]) == []
        assert called(messages=ASKS + result, tools=[WEATHER], tool_choice="required")

    def test_none_calls_nothing(self) -> None:
        assert called(messages=ASKS, tools=[WEATHER], tool_choice="none") == []

    def test_required_calls_at_least_one(self) -> None:
        assert called(messages=said("Hello"), tools=[NOW, WEATHER], tool_choice="required") == [
            "now"
        ]

    def test_a_name_calls_that_function_only(self) -> None:
        assert called(messages=ASKS, tools=[WEATHER, NOW], tool_choice=NAMED) == ["now"]

    def test_allowed_tools_are_a_subset(self) -> None:
        allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
        assert called(messages=ASKS, tools=[WEATHER, NOW], tool_choice=allowed) == ["now"]

    def test_without_parallel_calls_the_best_match_is_called(self) -> None:
        asks = said("Refund the order, and tell me the weather and the forecast of the city.")
        assert len(called(messages=asks, tools=[REFUND, WEATHER])) == 2
        assert called(messages=asks, tools=[REFUND, WEATHER], parallel_tool_calls=False) == [
            "get_weather"
        ]

    def test_ids_of_calls_are_unique_and_the_same_again(self) -> None:
        body = {"messages": ASKS, "tools": [WEATHER, tool("weather_map")], "n": 2}
        ids = [
            call["id"]
            for made in completion(**body)["choices"]
            for call in made["message"]["tool_calls"]
        ]
        assert len(set(ids)) == 4
        assert completion(**body) == completion(**body)


class TestLegacyFunctions:
    def test_a_function_call_is_made(self) -> None:
        made = choice(messages=ASKS, functions=[WEATHER["function"], NOW["function"]])
        assert made["finish_reason"] == "function_call"
        assert made["message"]["content"] is None
        call = made["message"]["function_call"]
        assert call["name"] == "get_weather"
        judge(PARAMETERS, orjson.loads(call["arguments"]))

    def test_function_call_chooses(self) -> None:
        functions = [WEATHER["function"], NOW["function"]]
        named = choice(messages=ASKS, functions=functions, function_call={"name": "now"})
        assert named["message"]["function_call"] == {"name": "now", "arguments": "{}"}
        none = choice(messages=ASKS, functions=functions, function_call="none")
        assert none["finish_reason"] == "stop"


def test_a_call_ends_at_the_token_limit() -> None:
    whole = completion(messages=ASKS, tools=[WEATHER])
    full = whole["usage"]["completion_tokens"]
    arguments = whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    assert (
        completion(messages=ASKS, tools=[WEATHER], max_tokens=full)["choices"][0]["finish_reason"]
        == "tool_calls"
    )
    for limit in range(1, full):
        body = completion(messages=ASKS, tools=[WEATHER], max_tokens=limit)
        (made,) = body["choices"]
        assert made["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == limit
        for call in made["message"].get("tool_calls", []):
            assert arguments.startswith(call["function"]["arguments"])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"tools": "x"}, ("invalid_type", "tools")),
        ({"tools": []}, ("empty_array", "tools")),
        ({"tools": [3]}, ("invalid_type", "tools[0]")),
        ({"tools": [{}]}, ("missing_required_parameter", "tools[0].type")),
        ({"tools": [{"type": "custom"}]}, ("invalid_value", "tools[0].type")),
        ({"tools": [{"type": "function"}]}, ("missing_required_parameter", "tools[0].function")),
        ({"tools": [{"type": "function", "function": 3}]}, ("invalid_type", "tools[0].function")),
        ({"tools": [{"type": "function", "function": {}}]},
         ("missing_required_parameter", "tools[0].function.name")),
        ({"tools": [tool("a b")]}, ("invalid_value", "tools[0].function.name")),
        ({"tools": [tool("a" * 65)]}, ("string_above_max_length", "tools[0].function.name")),
        ({"tools": [tool("a", 3)]}, ("invalid_type", "tools[0].function.parameters")),
        ({"tools": [NOW, tool("a", {"type": "string"})]},
         ("invalid_function_parameters", "tools[1].function.parameters")),
        ({"tools": [tool("a", {"type": "object", "properties": {"x": {"type": "strin"}}})]},
         ("invalid_function_parameters", "tools[0].function.parameters")),
        ({"tools": [NOW], "tool_choice": "x"}, ("invalid_value", "tool_choice")),
        ({"tools": [NOW], "tool_choice": 3}, ("invalid_type", "tool_choice")),
        ({"tools": [NOW], "tool_choice": {"type": "function"}},
         ("missing_required_parameter", "tool_choice.function")),
        ({"tools": [WEATHER], "tool_choice": NAMED}, (None, "tool_choice")),
        ({"tools": [NOW], "parallel_tool_calls": "x"}, ("invalid_type", "parallel_tool_calls")),
        ({"tool_choice": "auto"}, (None, "tool_choice")),
        ({"parallel_tool_calls": True}, (None, "parallel_tool_calls")),
        ({"functions": {}}, ("invalid_type", "functions")),
        ({"function_call": "auto"}, (None, "function_call")),
        ({"functions": [{"name": "a"}], "function_call": {"name": "b"}}, (None, "function_call")),
        ({"functions": [{"name": "a"}], "function_call": "required"}, ("invalid_value", "function_call")),
    ],
)  # fmt: skip
def test_invalid_tools_are_refused(body: dict[str, Any], expected: tuple[str | None, str]) -> None:
    assert error(ask(messages=ASKS, **body)) == (400, *expected)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"tool_choice": "auto"},
            "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are"
            " specified.",
        ),
        (
            {"tools": [WEATHER], "tool_choice": NAMED},
            "Invalid value for 'tool_choice': no function named now was specified in the 'tools'"
            " parameter.",
        ),
        (
            {"tools": [tool("a", {"type": "array"})]},
            "Invalid schema for function 'a': schema must be a JSON Schema of 'type: \"object\"',"
            " got 'type: \"array\"'.",
        ),
        (
            {"tools": [tool("a", {"type": "object", "properties": {"x": {"pattern": "("}}})]},
            'Invalid schema for function \'a\': "(" is not a "regex"',
        ),
    ],
)
def test_errors_have_the_words_of_openai(body: dict[str, Any], message: str) -> None:
    assert fault(ask(messages=ASKS, **body))["message"] == message
