"""Errors of `schedules` reworded: the API names fields, a command names its options."""

import re
from typing import Any

import typer

from xalen_batch.cli.failures import Failed
from xalen_batch.cli.group import Group

OPTIONS = {
    "input_file_id": "--file",
    "template_file_id": "--template",
    "starts_at": "--starts",
    "ends_at": "--ends",
    "as_of": "--for",
    "completion_window": "--window",
    "catch_up_window": "--catch-up",
    "execution_window": "--execution-window",
    "on_invalid": "--on-invalid",
    "misfire_limit": "--misfire-limit",
    "pause_on_failure": "--pause-on-failure",
    "ready_marker": "--ready-marker",
    "on_empty": "--on-empty",
    "discard_requests=true": "--discard-requests",
    "cron": "--cron",
    "timezone": "--timezone",
    "jitter": "--jitter",
    "overlap": "--overlap",
    "metadata": "--metadata",
    "endpoint": "--endpoint",
}
# Fields that are also English words: replaced only if the API quotes them.
MARKED = {"cron", "timezone", "jitter", "overlap", "metadata", "endpoint"}
# Quoted user input is not replaced.
_FIELD = re.compile(
    r"('(?:[^'\\]|\\.)*'(?!\w))"
    rf"|(?<![\w-])({'|'.join(name for name in OPTIONS if name not in MARKED)})(?![\w-])"
    rf"|(?:^|(?<=`)|(?<=\(param: ))({'|'.join(sorted(MARKED))})(?=[:`)])"
)


class Schedules(Group):
    """Replaces fields in errors by their options, and detects an unquoted expression."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Failed as error:
            error.args = (by_option(str(error)),)
            raise
        except typer.TyperException as error:
            if _is_unquoted(getattr(error, "ctx", None)):
                error.message += (
                    ' Quote the expression, or the shell takes it apart: --cron "30 2 * * *".'
                )
            raise


def by_option(message: str) -> str:
    """A message of the API, with options in place of their fields."""
    return _FIELD.sub(lambda found: found[1] or OPTIONS[found[2] or found[3]], message)


def _is_unquoted(ctx: Any) -> bool:
    """Whether --cron was given only the first field of an expression."""
    cron = None if ctx is None else ctx.params.get("cron")
    return isinstance(cron, str) and len(cron.split()) == 1 and not cron.startswith("@")
