"""When a delivery is attempted again, and when a webhook is disabled."""

import random
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime

# Seconds between the end of an attempt and the next one; the first attempt is due at once.
PAUSES = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
ATTEMPTS = 1 + len(PAUSES)
JITTER = 0.2
# Most seconds that a receiver can ask for with Retry-After.
LONGEST_PAUSE = 86_400.0
# A receiver that fails again and again gets nothing for a second for each failure after the first,
# at most a minute: so one that is down with a backlog does not hold a thread for hours.
MOST_BACK_OFF = 60.0

DISABLED_AFTER_FAILURES = 20
DISABLED_AFTER = timedelta(days=5)
GONE = 410
ASK_TO_WAIT = frozenset({429, 503})


def next_pause(failed: int, chance: random.Random | None = None) -> float | None:
    """Seconds until the next attempt after `failed` failed ones; None: that was the last."""
    if failed > len(PAUSES):
        return None
    draw = (chance or random).uniform(1 - JITTER, 1 + JITTER)
    return PAUSES[failed - 1] * draw


def back_off(consecutive_failures: int) -> float:
    """Seconds without an attempt for a receiver that has failed this often in a row."""
    return min(float(consecutive_failures - 1), MOST_BACK_OFF)


def asked_pause(status: int | None, retry_after: str | None, now: datetime) -> float:
    """Seconds that a receiver asks for with 429 or 503 and `Retry-After`: seconds or a date."""
    if status not in ASK_TO_WAIT or not retry_after:
        return 0.0
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        # As text, since a number of thousands of digits is slow to convert.
        return LONGEST_PAUSE if len(text) > 6 else min(float(text), LONGEST_PAUSE)
    try:
        left = (parsedate_to_datetime(text) - now).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(left, 0.0), LONGEST_PAUSE)


def is_hopeless(consecutive_failures: int, failing_since: datetime | None, now: datetime) -> bool:
    """Whether a webhook has failed so often, for so long without a success, that it is disabled."""
    return (
        consecutive_failures >= DISABLED_AFTER_FAILURES
        and failing_since is not None
        and now - failing_since >= DISABLED_AFTER
    )
