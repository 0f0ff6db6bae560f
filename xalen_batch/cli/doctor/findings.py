"""The findings of `doctor`'s checks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from xalen_batch.cli.failures import describe


@dataclass(frozen=True)
class CheckResult:
    name: str
    status: Literal["ok", "warning", "failed", "skipped"]
    detail: str


class Wrong(Exception):
    """The finding of a check that failed: the error and its remedy."""


class Doubtful(Wrong):
    """A warning: it works, but should be changed."""


class Skipped(Wrong):
    """The check was skipped, because something that it needs failed its own check."""


def check(name: str, look: Callable[[], str]) -> CheckResult:
    """Run a check. `look` returns the detail of a good result, or raises a finding."""
    try:
        return CheckResult(name, "ok", look())
    except Skipped as finding:
        return CheckResult(name, "skipped", str(finding))
    except Doubtful as finding:
        return CheckResult(name, "warning", str(finding))
    except Exception as error:
        return CheckResult(
            name, "failed", str(error) if isinstance(error, Wrong) else describe(error)
        )


def first_line(error: object) -> str:
    """The first line of an error's message, or the name of its class."""
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__
