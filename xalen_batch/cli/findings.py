"""What a check of `doctor` finds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from xalen_batch.cli.failures import describe


@dataclass(frozen=True)
class Check:
    name: str
    status: Literal["ok", "warning", "failed", "skipped"]
    detail: str


class Wrong(Exception):
    """A check's finding: what is wrong, and what to do."""


class Doubtful(Wrong):
    """It works, and should be better."""


class Skipped(Wrong):
    """Not looked at, because what it needs is missing; that is another check's finding."""


def check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", look())
    except Skipped as finding:
        return Check(name, "skipped", str(finding))
    except Doubtful as finding:
        return Check(name, "warning", str(finding))
    except Exception as error:
        return Check(name, "failed", str(error) if isinstance(error, Wrong) else describe(error))
