"""Strings for regular expressions, judged by the validator."""

from random import Random

import pytest

from xalen_batch.backends.simulated.schemas.checks import matches
from xalen_batch.backends.simulated.schemas.errors import NoValue
from xalen_batch.backends.simulated.schemas.patterns import text


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[A-Z]{2}-\d{4}$",
        r"^(foo|bar)(-\w+)?$",
        r"^(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)$",
        r"^(a|b)\1$",
        r"^[^a-zA-Z0-9]+$",
        r"^[^\s]{3,5}$",
        r"^\D\W\S.$",
        r"^\/api\/v\d+$",
        r"^[\u00e9-\u00ff]+$",
        # In JavaScript's syntax only.
        r"^\p{Lu}\p{L}+[\p{N}_]\P{L}$",
        r"^(?<year>\d{4})-(?<month>0[1-9])$",
        r"^\p{Script=Latin}$",
    ],
)
def test_the_string_matches(pattern: str) -> None:
    for seed in range(20):
        made = text(pattern, Random(seed), 0, None, asserts=False)
        assert matches(pattern, made), made


def test_a_length_is_met() -> None:
    lengths = {len(text("^[a-z]*b?$", Random(seed), 50, 50, asserts=False)) for seed in range(20)}
    assert 50 in lengths
    assert max(lengths) <= 51


def test_lookaheads_are_written_out_on_request() -> None:
    pattern = r"^(?=.*[A-Z]{3})(?=.*\d).{8,}$"
    assert matches(pattern, text(pattern, Random(1), 0, None, asserts=True))


@pytest.mark.parametrize(
    "pattern", ["a{30000}", "(?x", r"\p{", "(a{200}){200}", "((a?){900}){900}"]
)
def test_a_pattern_that_asks_for_too_much_is_refused(pattern: str) -> None:
    with pytest.raises(NoValue):
        text(pattern, Random(1), 0, None, asserts=False)
