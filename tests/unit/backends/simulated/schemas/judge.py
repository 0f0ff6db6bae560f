"""A judge of made values that is not the library they are made with."""

from typing import Any

import jsonschema
from jsonschema import FormatChecker

from xalen_batch.backends.simulated.prompt import Prompt
from xalen_batch.backends.simulated.schemas.schema import Schema

PROMPT = Prompt("", "My card was charged twice on this invoice. Please help.", 12345)
# The formats of all drafts; draft 3 has another `time`.
EVERY_FORMAT = FormatChecker(FormatChecker.checkers.keys() - {"time"})


def make(schema: Any, prompt: Prompt = PROMPT) -> Any:
    """A value for a schema, which fits it with all formats checked."""
    value = Schema(schema).value(prompt)
    judge(schema, value)
    return value


def judge(schema: Any, value: Any) -> None:
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    for formats in (kind.FORMAT_CHECKER, EVERY_FORMAT):
        kind(schema, format_checker=formats).validate(value)
