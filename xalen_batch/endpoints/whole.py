"""Read whole numbers of a request in any spelling of JSON: 256, 256.0 and 2.56e2 are one value."""

from typing import Any

import msgspec

# Parameters of all endpoints that are whole numbers.
PARAMETERS = (
    "n",
    "best_of",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "top_n",
    "dimensions",
)


def whole(body: dict[str, Any]) -> dict[str, Any]:
    """Return the request with its whole numbers as ints.

    Fractions and values of other types stay as they are, for later checks to report.
    """
    spelt = {
        name: int(value)
        for name in PARAMETERS
        if isinstance(value := body.get(name), float) and value.is_integer()
    }
    return {**body, **spelt} if spelt else body


def decoded(body: bytes) -> dict[str, Any]:
    """A request's JSON object; empty if the body is none."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
