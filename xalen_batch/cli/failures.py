"""The exit codes, and errors as one readable line."""

import os
import sys

OK = 0
ERROR = 1
USAGE = 2
NOT_SUCCESSFUL = 3
AUTH = 4
TIMED_OUT = 5
INTERRUPTED = 130

STOPPED_EARLY = "Stopped before the command began."


class Failed(Exception):
    """The command cannot continue; the message has the reason and the remedy."""

    def __init__(self, message: str, exit_code: int = ERROR) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ApiError(Failed):
    """An error answer of the API, with its code if it has one.

    `retry_after`: the pause that it asks for, in seconds. `may_pass`: whether a repeated request
    may succeed, by its header `x-should-retry`, else by its status.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        retry_after: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message, AUTH if status in (401, 403) else ERROR)
        self.status = status
        self.code = code
        self.retry_after = retry_after
        self.may_pass = (
            (status in (408, 409, 429) or status >= 500) if should_retry is None else should_retry
        )


class Unreachable(Failed):
    """The API did not answer."""


def describe(error: Exception) -> str:
    """An error in one line, for people.

    Called only at the end of a command, so it may import slow modules.
    """
    from pydantic import ValidationError

    from xalen_batch import config_errors
    from xalen_batch.config import Settings
    from xalen_batch.errors import ConfigError, XalenError

    match error:
        case Failed() | ConfigError() | XalenError():
            return str(error)
        case ValidationError(title="Settings"):
            return f"A setting is not valid. {config_errors.of_settings(error, Settings)}"
        case OSError(strerror=str(reason), filename=str(name)):
            return f"{name}: {reason}"
        case OSError(strerror=str(reason)):
            return reason
    if type(error).__name__ == "OperationalError" and (cause := getattr(error, "orig", None)):
        return f"The database does not answer: {str(cause).partition(chr(10))[0]}"
    first_line = str(error).partition("\n")[0]
    return f"Unexpected {type(error).__name__}: {first_line} (XALEN_DEBUG=1 shows where)"


def plain(message: str) -> str:
    """A validation library's message without the words that mean nothing to a user."""
    return message.removeprefix("Value error, ")


def exit_code(error: Exception) -> int:
    return error.exit_code if isinstance(error, Failed) else ERROR


def is_debugging() -> bool:
    return os.environ.get("XALEN_DEBUG", "") not in ("", "0")


def silence_stdout() -> None:
    """Redirect stdout after a broken pipe, so that the flush at interpreter exit does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
