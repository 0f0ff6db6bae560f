"""The checks of a chat's parameters, with the errors of OpenAI's and vLLM's servers."""

from typing import Any

from xalen_batch.backends.simulated.refusal import Refusal

MOST_CHOICES = 128
# Parameters that validation accepts and the simulated models ignore: they do not sample, and they
# do not track users.
IGNORED = frozenset(
    {"temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "user"}
)
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


def messages_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal("`messages` must be a list with at least one message.", param="messages")
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise Refusal(
                f"messages[{index}] must be an object with a known `role`.",
                param=f"messages[{index}].role",
            )
        if not isinstance(message.get("content"), str | list | None) or (
            message["role"] == "user" and message.get("content") in (None, [])
        ):
            raise Refusal(
                f"messages[{index}].content must be a text or a list of parts.",
                param=f"messages[{index}].content",
            )
    return messages


def check_parameters(body: dict[str, Any]) -> None:
    for name, low, high in (("temperature", 0, 2), ("top_p", 0, 1)):
        value = body.get(name)
        if value is not None and (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not low <= value <= high
        ):
            raise Refusal(
                f"`{name}` must be between {low} and {high}.", param=name, code="invalid_value"
            )
    for name, most in (("max_tokens", None), ("max_completion_tokens", None), ("n", MOST_CHOICES)):
        value = body.get(name)
        if value is not None and (
            (number := whole_number(value)) is None or number < 1 or (most and number > most)
        ):
            raise Refusal(
                f"`{name}` must be a whole number of at least"
                f" 1{f' and at most {most}' if most else ''}.",
                param=name,
                code="invalid_value",
            )


def whole_number(value: Any) -> int | None:
    """A whole number in any spelling of JSON, such as 2.0, as an int; None for other values."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
