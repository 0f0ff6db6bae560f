"""The usage of an answer: as a backend reports it, and as a usage object states it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from msgspec import Struct

ABSURD = 10_000_000


class Usage(Struct, frozen=True, gc=False):
    """Tokens of one answer; never negative.

    `counted` is true if we counted them, because the backend reported no usable numbers.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    counted: bool = False


class Keys(NamedTuple):
    """The standard keys of an endpoint's usage object. `output` None: it has no output tokens."""

    input: str
    output: str | None
    input_details: str
    output_details: str


CHAT_KEYS = Keys(
    "prompt_tokens", "completion_tokens", "prompt_tokens_details", "completion_tokens_details"
)
RESPONSE_KEYS = Keys(
    "input_tokens", "output_tokens", "input_tokens_details", "output_tokens_details"
)
INPUT_KEYS = CHAT_KEYS._replace(output=None)


def reported(answer: Mapping[str, Any]) -> Usage | None:
    """The usage that an answer reports under the keys of any endpoint with output tokens.

    None: the answer reports none that can be read.
    """
    usage = table(answer.get("usage"))
    read = number(usage, CHAT_KEYS.input, RESPONSE_KEYS.input)
    written = number(usage, "completion_tokens", "output_tokens")
    if read is None or written is None:
        return None
    cached = _detail(usage, "cached_tokens", CHAT_KEYS.input_details, RESPONSE_KEYS.input_details)
    reasoning = _detail(
        usage, "reasoning_tokens", CHAT_KEYS.output_details, RESPONSE_KEYS.output_details
    )
    return Usage(read, written, min(cached, read), min(reasoning, written))


def reported_input(answer: Mapping[str, Any]) -> Usage | None:
    """The usage that an answer without output tokens reports, in the shape of any server."""
    usage, meta = table(answer.get("usage")), table(answer.get("meta"))
    read = number(usage, CHAT_KEYS.input, RESPONSE_KEYS.input, "total_tokens")
    if read is None:
        read = number(table(meta.get("tokens")), "input_tokens")
    if read is None:
        read = number(table(meta.get("billed_units")), "input_tokens")
    return None if read is None else Usage(read)


def states(stated: Mapping[str, Any], usage: Usage, keys: Keys) -> bool:
    """Whether a usage object has this usage under the standard keys; absent details are 0."""
    if keys.output is None:
        # Jina's shape has no output tokens.
        stated = {"completion_tokens": 0, **stated}
    found = (
        number(stated, keys.input),
        number(stated, keys.output or "completion_tokens"),
        _stated_detail(stated.get(keys.input_details), "cached_tokens"),
        _stated_detail(stated.get(keys.output_details), "reasoning_tokens"),
    )
    return found == (
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
    )


def standard(usage: Usage, keys: Keys) -> dict[str, Any]:
    """The usage object with this usage under the standard keys."""
    if keys.output is None:
        return {keys.input: usage.input_tokens, "total_tokens": usage.input_tokens}
    stated: dict[str, Any] = {
        keys.input: usage.input_tokens,
        keys.output: usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
    # A Response's details are required, a chat completion's are not.
    is_required = keys is RESPONSE_KEYS
    if usage.cached_tokens or is_required:
        # A Response's details have both numbers; what a cache wrote is billed as input.
        written = {"cache_write_tokens": 0} if is_required else {}
        stated[keys.input_details] = {"cached_tokens": usage.cached_tokens, **written}
    if usage.reasoning_tokens or is_required:
        stated[keys.output_details] = {"reasoning_tokens": usage.reasoning_tokens}
    return stated


def number(values: Mapping[str, Any], *names: str) -> int | None:
    """The value of the first of these keys that is present; None if it is no token count."""
    for name in names:
        value = values.get(name)
        if value is not None:
            return value if type(value) is int and 0 <= value <= ABSURD else None
    return None


def table(value: Any) -> Mapping[str, Any]:
    """A JSON object; a value of any other type counts as an empty one."""
    return value if isinstance(value, dict) else {}


def _detail(usage: Mapping[str, Any], name: str, *details: str) -> int:
    for each in details:
        found = number(table(usage.get(each)), name)
        if found is not None:
            return found
    return 0


def _stated_detail(details: Any, name: str) -> int | None:
    """A number in the details of a usage; 0 if it is absent or null, None if a strict client could
    not parse it.
    """
    if details is None:
        return 0
    if not isinstance(details, dict):
        return None
    return 0 if details.get(name) is None else number(details, name)
