"""How pages write times, durations and amounts."""

from decimal import Decimal

import pytest

from xalen_batch.console import words

NOW = 1_795_126_441  # Thu 19 Nov 2026, 22:14:01 UTC


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (65, "1 min 05 s"),
        (600, "10 min"),
        (3_900, "1 h 05 min"),
        (36_000, "10 h"),
        (3 * 86_400 + 4 * 3_600, "3 d 04 h"),
        (-5, "0 s"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: float, text: str) -> None:
    assert words.span(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (NOW, "0 s ago"),
        (NOW - 7, "7 s ago"),
        (NOW - 143, "2 min ago"),
        (NOW + 7_300, "in 2 h 01 min"),
    ],
)
def test_a_time_is_told_from_now(seconds: int, text: str) -> None:
    assert words.relative(seconds, NOW) == text


def test_a_time_has_the_exact_one_with_it() -> None:
    assert words.time(NOW, NOW) == (
        '<time datetime="2026-11-19T22:14:01Z" title="Thu 19 Nov 2026, 22:14:01 UTC">0 s ago</time>'
    )
    assert words.time(None, NOW) == "–"


@pytest.mark.parametrize(
    ("amount", "html"),
    [
        ("0.22617292", '0.22<span class="sub">617292</span>'),
        (Decimal("14.83"), "14.83"),
        (Decimal("-0.0015"), '−0.00<span class="sub">15</span>'),
        (Decimal("1E-7"), '0.00<span class="sub">00001</span>'),
        (None, "–"),
    ],
)
def test_an_amount_has_all_its_digits(amount: Decimal | str | None, html: str) -> None:
    assert words.amount(amount) == html


def test_cells_of_a_column_are_padded_to_its_longest_amount() -> None:
    column = [Decimal("0.5"), Decimal("0.125"), None]
    width = words.longest(column)
    assert width == 1
    assert [words.cell(each, width) for each in column] == [
        '<td class="money " data-pad="0">0.50</td>',
        '<td class="money ">0.12<span class="sub">5</span></td>',
        '<td class="n muted ">–</td>',
    ]


def test_a_share_is_whole_only_when_all_is_done() -> None:
    assert words.percent(49_999, 50_000) == "99.9 %"
    assert words.percent(50_000, 50_000) == "100.0 %"
    assert words.percent(0, 0) == "–"


def test_an_unknown_state_is_escaped() -> None:
    assert "<b>" not in words.state("<b>")
