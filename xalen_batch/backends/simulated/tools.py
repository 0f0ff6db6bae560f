"""Calls of the functions that a request offers, with arguments that fit their parameters.

`tool_choice`: `none` calls nothing; a name calls that function; `required` calls at least one.
`auto`, the default, calls the functions whose name, description or parameters share a word with the
last message, if that is the user's; it answers in text after a tool's result. Unless
`parallel_tool_calls` is false, `auto` and `required` call every function that shares a word, up to
MOST_CALLS, the best match first.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from xalen_batch.backends.simulated.constraints import json_writer
from xalen_batch.backends.simulated.prompt import Prompt
from xalen_batch.backends.simulated.ranking import stems
from xalen_batch.backends.simulated.refusal import Refusal, invalid_type, invalid_value, missing

FIELDS = frozenset({"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"})
MOST_CALLS = 3
LONGEST_NAME = 64
NAME = "^[a-zA-Z0-9_-]+$"
_NAME = re.compile(NAME)
_WORD_END = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[_-]+")

Mode = Literal["none", "auto", "required"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call; `arguments` is JSON."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Function:
    """`words` are the stems of its description."""

    name: str
    words: frozenset[str]
    arguments: Callable[[Prompt], str]


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions of a request that may be called. `is_legacy`: from `functions`."""

    functions: tuple[Function, ...]
    mode: Mode
    is_parallel: bool
    is_legacy: bool

    def calls(self, prompt: Prompt, last_role: str) -> list[Call]:
        """The calls of one choice; none if it answers in text."""
        if self.mode == "none" or (self.mode == "auto" and last_role != "user"):
            return []
        asked = frozenset(stems(prompt.user))
        shared = {function.name: len(asked & function.words) for function in self.functions}
        fitting = sorted(self.functions, key=lambda function: -shared[function.name])
        called = [function for function in fitting if shared[function.name]][:MOST_CALLS]
        if not called and self.mode == "required":
            called = fitting
        if not self.is_parallel or not any(shared.values()):
            called = called[:1]
        return [Call(function.name, function.arguments(prompt)) for function in called]


def tools_of(body: Mapping[str, Any]) -> Tools | None:
    """The functions that a request offers; None if it offers none. Raises Refusal."""
    if body.get("tools") is not None:
        return _current(body)
    for name in ("tool_choice", "parallel_tool_calls"):
        if body.get(name) is not None:
            raise _needs(name, "tools")
    if body.get("functions") is not None:
        return _legacy(body)
    if body.get("function_call") is not None:
        raise _needs("function_call", "functions")
    return None


def _needs(name: str, other: str) -> Refusal:
    return Refusal(
        f"Invalid value for '{name}': '{name}' is only allowed when '{other}' are specified.",
        param=name,
    )


def _current(body: Mapping[str, Any]) -> Tools:
    tools = _list(body["tools"], "tools")
    functions = []
    for index, tool in enumerate(tools):
        kind = tool.get("type")
        if kind is None:
            raise missing(f"tools[{index}].type")
        if kind != "function":
            raise invalid_value(f"tools[{index}].type", kind, "'function'")
        functions.append(_function(tool.get("function"), f"tools[{index}].function"))
    parallel = body.get("parallel_tool_calls")
    if not isinstance(parallel, bool | None):
        raise invalid_type("parallel_tool_calls", "a boolean", parallel)
    chosen, mode = _chosen(body.get("tool_choice"), functions)
    return Tools(tuple(chosen), mode, is_parallel=parallel is not False, is_legacy=False)


def _legacy(body: Mapping[str, Any]) -> Tools:
    functions = [
        _function(function, f"functions[{index}]")
        for index, function in enumerate(_list(body["functions"], "functions"))
    ]
    choice = body.get("function_call")
    chosen, mode = functions, "auto"
    if isinstance(choice, Mapping):
        name = _name(choice, "function_call")
        chosen, mode = _named([name], functions, "function_call", "functions"), "required"
    elif choice is not None:
        if choice not in ("none", "auto"):
            raise invalid_value("function_call", choice, "'none' and 'auto'")
        mode = choice
    return Tools(tuple(chosen), mode, is_parallel=False, is_legacy=True)  # type: ignore[arg-type]


def _list(value: Any, param: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list):
        raise invalid_type(param, "an array of objects", value)
    if not value:
        raise Refusal(
            f"Invalid '{param}': empty array. Expected an array with minimum length 1, but got an"
            " empty array instead.",
            code="empty_array",
            param=param,
        )
    for index, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise invalid_type(f"{param}[{index}]", "an object", item)
    return value


def _function(described: Any, param: str) -> Function:
    if described is None:
        raise missing(param)
    if not isinstance(described, Mapping):
        raise invalid_type(param, "an object", described)
    name = _name(described, param)
    if not _NAME.fullmatch(name):
        raise Refusal(
            f"Invalid '{param}.name': string does not match pattern. Expected a string that matches"
            f" the pattern '{NAME}'.",
            code="invalid_value",
            param=f"{param}.name",
        )
    if len(name) > LONGEST_NAME:
        raise Refusal(
            f"Invalid '{param}.name': string too long. Expected a string with maximum length"
            f" {LONGEST_NAME}, but got a string with length {len(name)} instead.",
            code="string_above_max_length",
            param=f"{param}.name",
        )
    parameters = described.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    subject, at = f"function '{name}'", f"{param}.parameters"
    if not isinstance(parameters, Mapping):
        raise invalid_type(at, "an object", parameters)
    if parameters and parameters.get("type") != "object":
        kind = parameters.get("type")
        shown = f'"{kind}"' if isinstance(kind, str) else "null"
        raise Refusal(
            f"Invalid schema for {subject}: schema must be a JSON Schema of 'type: \"object\"', got"
            f" 'type: {shown}'.",
            code="invalid_function_parameters",
            param=at,
        )
    arguments = json_writer(
        parameters or {"type": "object"},
        subject,
        param=at,
        code="invalid_function_parameters",
    )
    return Function(name, _words(described, parameters), arguments)


def _name(described: Mapping[str, Any], param: str) -> str:
    name = described.get("name")
    if name is None:
        raise missing(f"{param}.name")
    if not isinstance(name, str):
        raise invalid_type(f"{param}.name", "a string", name)
    return name


def _words(described: Mapping[str, Any], parameters: Mapping[str, Any]) -> frozenset[str]:
    """The stems of a function's name, description and parameters."""
    properties = parameters.get("properties")
    texts = [described["name"], *(properties if isinstance(properties, Mapping) else ())]
    text = " ".join(_WORD_END.sub(" ", name) for name in texts)
    description = described.get("description")
    return frozenset(stems(f"{text} {description if isinstance(description, str) else ''}"))


def _chosen(choice: Any, functions: list[Function]) -> tuple[list[Function], Mode]:
    """The functions that `tool_choice` allows, and how it wants them called."""
    if choice is None:
        return functions, "auto"
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise invalid_value("tool_choice", choice, "'none', 'auto', and 'required'")
        return functions, choice  # type: ignore[return-value]  # one of the modes
    if not isinstance(choice, Mapping):
        raise invalid_type("tool_choice", "one of a string or an object", choice)
    if choice.get("type") == "allowed_tools":
        return _allowed(choice.get("allowed_tools"), functions)
    if choice.get("type") != "function":
        raise invalid_value(
            "tool_choice.type", choice.get("type"), "'function' and 'allowed_tools'"
        )
    name = _chosen_name(choice, "tool_choice")
    return _named([name], functions, "tool_choice", "tools"), "required"


def _chosen_name(choice: Mapping[str, Any], param: str) -> str:
    function = choice.get("function")
    if function is None:
        raise missing(f"{param}.function")
    if not isinstance(function, Mapping):
        raise invalid_type(f"{param}.function", "an object", function)
    return _name(function, f"{param}.function")


def _allowed(allowed: Any, functions: list[Function]) -> tuple[list[Function], Mode]:
    param = "tool_choice.allowed_tools"
    if not isinstance(allowed, Mapping):
        raise invalid_type(param, "an object", allowed)
    mode = allowed.get("mode")
    if mode not in ("auto", "required"):
        raise invalid_value(f"{param}.mode", mode, "'auto' and 'required'")
    names = [
        _chosen_name(tool, f"{param}.tools[{index}]")
        for index, tool in enumerate(_list(allowed.get("tools"), f"{param}.tools"))
    ]
    return _named(names, functions, "tool_choice", "tools"), mode


def _named(
    names: Sequence[str], functions: list[Function], param: str, where: str
) -> list[Function]:
    for name in names:
        if not any(function.name == name for function in functions):
            raise Refusal(
                f"Invalid value for '{param}': no function named {name[:64]} was specified in the"
                f" '{where}' parameter.",
                param=param,
            )
    return [function for function in functions if function.name in names]
