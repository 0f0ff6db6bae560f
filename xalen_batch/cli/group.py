"""How the help of every command is shown."""

import re
from typing import Any

from typer.core import TyperGroup


class Group(TyperGroup):
    """A group of commands whose help writes no type behind flags, which take no value, and
    arguments, whose text says it. The terminal breaks its lines, not the source.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_types(super().get_params(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            # `--help` itself is made here, and kept.
            _without_types(command.get_params(ctx))
            command.help = _unbroken(command.help)
        return command


def _unbroken(text: str | None) -> str | None:
    """Help with one line for each paragraph."""
    if text is None:
        return None
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip()))


def _no_type(ctx: Any) -> None:
    """In place of Typer's `<bool>` and `<path>`."""


def _without_types(params: list[Any]) -> list[Any]:
    for param in params:
        if param.param_type_name == "argument" or param.is_flag:
            param.display_type_rich = _no_type
    return params
