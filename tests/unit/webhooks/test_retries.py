"""When a delivery is attempted again, and when a webhook is given up."""

import random
from datetime import UTC, datetime, timedelta

import pytest

from xalen_batch.webhooks import retries

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
MINUTE, HOUR = 60, 3_600


def test_pauses_are_those_of_the_wire_within_a_fifth() -> None:
    wanted = [5, 5 * MINUTE, 30 * MINUTE, *(hours * HOUR for hours in (2, 5, 10, 14, 20, 24))]
    assert len(wanted) == retries.ATTEMPTS - 1
    chance = random.Random(1)
    for failed, seconds in enumerate(wanted, start=1):
        drawn = [retries.next_pause(failed, chance) or 0 for _ in range(200)]
        assert seconds * 0.8 <= min(drawn) < seconds * 0.85
        assert seconds * 1.15 < max(drawn) <= seconds * 1.2
    assert retries.next_pause(retries.ATTEMPTS) is None


def test_a_failing_receiver_rests_a_second_for_each_further_failure_at_most_a_minute() -> None:
    found = [retries.back_off(failures) for failures in (1, 2, 60, 61, 10_000)]
    assert found == [0, 1, 59, 60, 60]


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [
        (429, "120", 120),
        (503, " 7 ", 7),
        (503, "0", 0),
        (429, "86401", 86_400),
        (429, "9" * 10_000, 86_400),
        (429, "Sun, 29 Nov 2026 12:01:40 GMT", 100),
        (429, "Sun, 29 Nov 2026 11:00:00 GMT", 0),
        (429, "Sun, 29 Nov 2099 11:00:00 GMT", 86_400),
        # Without a zone: a date that cannot be compared.
        (429, "Sun, 29 Nov 2026 12:01:40 -0000", 0),
        (429, "soon", 0),
        (429, "-5", 0),
        (429, "١٢", 0),
        (429, "", 0),
        (429, None, 0),
        (500, "120", 0),
        (None, "120", 0),
    ],
)
def test_retry_after_of_429_and_503_is_obeyed_up_to_a_day(
    status: int | None, header: str | None, seconds: float
) -> None:
    assert retries.asked_pause(status, header, NOW) == seconds


def test_five_days_and_twenty_failures_together_give_a_webhook_up() -> None:
    long, short = NOW - timedelta(days=5), NOW - timedelta(days=5) + timedelta(seconds=1)
    assert retries.is_hopeless(20, long, NOW)
    assert not retries.is_hopeless(19, long, NOW)
    assert not retries.is_hopeless(1_000, short, NOW)
    assert not retries.is_hopeless(20, None, NOW)
