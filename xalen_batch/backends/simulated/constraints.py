"""What an answer's text must fit: `response_format`, and vLLM's fields for structured outputs."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from xalen_batch.backends.simulated import json_mode
from xalen_batch.backends.simulated.prompt import Prompt
from xalen_batch.backends.simulated.refusal import (
    Refusal,
    invalid_type,
    invalid_value,
    missing,
)

# Writes the text of one choice.
Writer = Callable[[Prompt], str]

FIELDS = frozenset(
    {"response_format", "structured_outputs", "guided_json", "guided_choice", "guided_regex"}
    | {"guided_grammar"}
)


def writer_of(body: Mapping[str, Any]) -> Writer | None:
    """The writer that a request asks for; None for plain text. Raises Refusal."""
    formatted = _of_response_format(body.get("response_format"))
    structured = _of_structured_outputs(body.get("structured_outputs"))
    guided = _of_guided(body)
    found = [writer for writer in (formatted, structured, guided) if writer is not None]
    if len(found) > 1:
        raise Refusal(
            "You can only use one kind of constraints for structured outputs ('json', 'regex' or"
            " 'choice').",
            param="structured_outputs" if structured else "guided_json",
        )
    return found[0] if found else None


def _of_response_format(wanted: Any) -> Writer | None:
    if wanted is None:
        return None
    if not isinstance(wanted, Mapping):
        raise invalid_type("response_format", "an object", wanted)
    kind = wanted.get("type")
    if kind is None:
        raise missing("response_format.type")
    if kind == "text":
        return None
    if kind == "json_object":
        return json_mode.write
    if kind != "json_schema":
        raise invalid_value(
            "response_format.type", kind, "'json_object', 'json_schema', and 'text'"
        )
    described = wanted.get("json_schema")
    if described is None:
        raise missing("response_format.json_schema")
    if not isinstance(described, Mapping):
        raise invalid_type("response_format.json_schema", "an object", described)
    name = described.get("name")
    if name is None:
        raise missing("response_format.json_schema.name")
    if not isinstance(name, str):
        raise invalid_type("response_format.json_schema.name", "a string", name)
    schema = described.get("schema")
    return json_writer(
        {"type": "object"} if schema is None else schema,
        f"response_format '{name[:64]}'",
        param="response_format",
    )


def _of_structured_outputs(wanted: Any) -> Writer | None:
    if wanted is None:
        return None
    if not isinstance(wanted, Mapping):
        raise invalid_type("structured_outputs", "an object", wanted)
    kinds = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
    asked = [kind for kind in kinds if wanted.get(kind) is not None]
    if not asked:
        raise Refusal(
            "You must use one kind of structured outputs constraint but none are specified.",
            param="structured_outputs",
        )
    if len(asked) > 1:
        raise Refusal(
            "You can only use one kind of constraints for structured outputs ('json', 'regex' or"
            " 'choice').",
            param="structured_outputs",
        )
    return _of_kind(asked[0], wanted[asked[0]], f"structured_outputs.{asked[0]}")


def _of_guided(body: Mapping[str, Any]) -> Writer | None:
    kinds = ("json", "regex", "choice", "grammar")
    asked = [kind for kind in kinds if body.get(f"guided_{kind}") is not None]
    if not asked:
        return None
    if len(asked) > 1:
        raise Refusal(
            "You can only use one kind of guided decoding ('guided_json', 'guided_regex' or"
            " 'guided_choice').",
            param=f"guided_{asked[1]}",
        )
    return _of_kind(asked[0], body[f"guided_{asked[0]}"], f"guided_{asked[0]}")


def _of_kind(kind: str, value: Any, param: str) -> Writer | None:
    if kind == "json":
        return json_writer(_schema_in(value, param), param, param=param)
    if kind == "choice":
        return _choice_writer(value, param)
    if kind == "regex":
        return _regex_writer(value, param)
    if kind == "json_object":
        return json_mode.write if value else None
    raise Refusal(f"The simulated models do not follow `{param}`.", param=param)


def _schema_in(value: Any, param: str) -> Any:
    """A schema, which vLLM also takes as JSON in a string."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refusal(f"Invalid JSON in '{param}': {error}.", param=param) from error


def _choice_writer(choices: Any, param: str) -> Writer:
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise invalid_type(param, "an array of strings", choices)
    if not choices:
        raise Refusal(
            f"Invalid '{param}': empty array. Expected an array with minimum length 1, but got an"
            " empty array instead.",
            code="empty_array",
            param=param,
        )
    labels = tuple(choices)
    return lambda prompt: prompt.classified(labels)


def _regex_writer(pattern: Any, param: str) -> Writer:
    if not isinstance(pattern, str):
        raise invalid_type(param, "a string", pattern)
    # The whole answer has to match.
    whole = {"type": "string", "pattern": f"^(?:{pattern})$"}
    write = schema_writer(whole, param, param=param)
    return lambda prompt: str(write(prompt))


def json_writer(schema: Any, subject: str, *, param: str, code: str | None = None) -> Writer:
    """A writer of JSON that fits a schema. Raises Refusal for an invalid one."""
    write = schema_writer(schema, subject, param=param, code=code)
    return lambda prompt: msgspec.json.encode(write(prompt)).decode()


def schema_writer(
    schema: Any, subject: str, *, param: str, code: str | None = None
) -> Callable[[Prompt], Any]:
    """A maker of values that fit a schema. It and its maker raise Refusal; `subject` is named."""
    # Not imported by plain chats.
    from xalen_batch.backends.simulated.schemas.budget import Budget
    from xalen_batch.backends.simulated.schemas.errors import InvalidSchema, NoValue
    from xalen_batch.backends.simulated.schemas.schema import load

    try:
        loaded = load(schema)
    except InvalidSchema as error:
        message = f"Invalid schema for {subject}: {error}"
        raise Refusal(message, code=code, param=param) from error

    budget = Budget()

    def write(prompt: Prompt) -> Any:
        try:
            return loaded.value(prompt, budget)
        except NoValue as error:
            message = f"The simulated model finds no value for the schema of {subject}: {error}."
            raise Refusal(message, code=code, param=param) from error

    return write
