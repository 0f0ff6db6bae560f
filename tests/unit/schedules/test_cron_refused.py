"""Cron expressions and time zones that are refused, and what is proposed instead."""

import pytest

from xalen_batch.errors import InvalidRequest
from xalen_batch.schedules.cron import Cron

FIVE = (
    "Write five fields (minute, hour, day of month, month, day of week), such as `30 2 * * *` for"
    " every night at 02:30."
)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", f"cron: '' is made of 0 instead of five fields. {FIVE}"),
        ("daily", f"cron: 'daily' is made of 1 instead of five fields. {FIVE}"),
        (
            "0 30 2 * * *",
            f"cron: '0 30 2 * * *' is made of 6 instead of five fields; seconds and years are not supported. {FIVE}",
        ),
        (
            "60 2 * * *",
            "cron: '60 2 * * *' is no cron expression: '60' is no minute. Write 0 to 59, such as `30`, `0,30` or `*/15`.",
        ),
        (
            "0 24 * * *",
            "cron: '0 24 * * *' is no cron expression: '24' is no hour. Write 0 to 23, such as `2`, `9-17` or `*/6`.",
        ),
        (
            "0 2 * 13 *",
            "cron: '0 2 * 13 *' is no cron expression: '13' is no month. Write 1 to 12 or JAN to DEC, such as `1-3` or `JAN,JUL`.",
        ),
        (
            "0 0 30 2 *",
            "cron: '0 0 30 2 *' never fires: no date is as its day of month, month and day of week say. Write days that exist, such as `30 2 28 2 *`.",
        ),
    ],
)
def test_a_wrong_expression_is_refused_with_the_remedy(expression: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Cron.parse(expression, "Europe/Berlin")
    assert (refused.value.message, refused.value.param) == (message, "cron")


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("@reboot", "is no nickname. Write @hourly, @daily"),
        ("@every 5m", "is no nickname"),
        ("0 0 ? * *", "'?' is no day of month"),
        ("0 0 32 * *", "'32' is no day of month"),
        ("0 0 * * FRI-SUN", "'FRI-SUN' is no day of week"),
        ("0 0 * * MON#6", "'MON#6' is no day of week"),
        ("0 -1 * * *", "'-1' is no hour"),
        ("*/0 * * * *", "'*/0' is no minute"),
        ("5-1 * * * *", "'5-1' is no minute"),
        ("² * * * *", "'²' is no minute"),
        ("\0 * * * *", "'\\x00' is no minute"),
        ("0,0,0," * 40 + "0 * * * *", "has 249 characters; the most is 200"),
        ("0 22-6 * * *", "'22-6' is no hour. Write `22-23,0-6`: a range does not"),
        ("0 9,22-0 * * *", "Write `9,22-23,0`"),
        ("0 0 28-3 * *", "Write `28-31,1-3`"),
        ("0 0 28-0 * *", "Write 1 to 31"),
        ("0 0 * NOV-feb *", "Write `11-12,1-2`"),
        ("0 0 * * fri-mon", "Write `5-7,1`"),
        ("0 0 * * fri-sun", "Write `5-7`"),
        ("0 0 ? * mon", "Write `*`, which"),
        # Accepted by cronsim, as if it were `0`.
        (
            "*/90 * * * *",
            (
                "the step of '*/90' is larger than the field minute. Write a step of up to 60, or"
                " steps of whole hours"
            ),
        ),
        (
            "0 1-5,*/25 * * *",
            "the step of '1-5,*/25' is larger than the field hour. Write a step of up to 24.",
        ),
        # Accepted by cronsim, which then looks for a date in vain.
        ("0 0 */30 2 MON#2", "never fires"),
        ("0 0 31 2,4,6,9,11 *", "never fires"),
    ],
)
def test_what_is_no_expression_or_never_fires_is_refused(expression: str, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Cron.parse(expression, "UTC")
    assert reason in refused.value.message
    assert refused.value.param == "cron"


@pytest.mark.parametrize(
    ("name", "proposal"),
    [
        ("Europe/Berln", "`Europe/Berlin`"),
        ("europe/berlin", "`Europe/Berlin`"),
        ("Berlin", "`Europe/Berlin`"),
        ("new york", "`America/New_York`"),
        ("+02:00", "`Europe/Berlin`, `America/New_York`, `UTC`"),
        ("Europe", "UTC"),
        ("../UTC", ""),
        ("/usr/share/zoneinfo/UTC", ""),
        ("posix/UTC", ""),
        ("UTC\0", ""),
        ("\ud800", ""),
        ("localtime", ""),
        ("posixrules", ""),
        ("Factory", ""),
        ("tzdata.zi", ""),
        ("", ""),
        ("x" * 100_000, ""),
    ],
)
def test_what_is_no_zone_is_refused_with_names_that_are_close(name: str, proposal: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Cron.parse("@daily", name)
    assert proposal in refused.value.message
    assert refused.value.message.startswith("timezone: ")
    assert len(refused.value.message) < 300
    assert refused.value.param == "timezone"


@pytest.mark.parametrize(
    "expression", ["*/60 * * * *", "0 */24 * * *", "0 0 */31 * *", "0 0 1 */12 *", "0 0 * * */7"]
)
def test_a_step_as_large_as_its_field_is_the_first_value(expression: str) -> None:
    assert Cron.parse(expression, "UTC")


@pytest.mark.parametrize(
    "refused",
    [
        "0 22-6 * * *",
        "50-10 * * * *",
        "0 0 28-3 * *",
        "0 0 * NOV-feb *",
        "0 0 * * fri-mon",
        "0 0 * * sat-sun",
    ],
)
def test_what_is_proposed_for_a_range_is_accepted(refused: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        Cron.parse(refused, "UTC")
    meant = error.value.message.split("`")[1]
    assert Cron.parse(
        " ".join(meant if "-" in field else field for field in refused.split()), "UTC"
    )


def test_a_zone_in_another_case_is_proposed_alone() -> None:
    with pytest.raises(InvalidRequest, match=r"Write one such as `Europe/Berlin`\.$"):
        Cron.parse("@daily", "EUROPE/berlin")
