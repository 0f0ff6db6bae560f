"""Strings of each format, judged by the `jsonschema` package."""

from random import Random

import pytest

from tests.unit.backends.simulated.schemas.judge import judge
from xalen_batch.backends.simulated.schemas import formats


@pytest.mark.parametrize("name", sorted(formats._MAKERS))
def test_every_candidate_is_of_the_format(name: str) -> None:
    for seed in range(8):
        for candidate in formats.candidates(name, Random(seed), seed * 17):
            judge({"type": "string", "format": name}, candidate)


@pytest.mark.parametrize("name", ["uri", "email", "hostname", "uri-reference", "json-pointer"])
def test_a_long_string_is_padded(name: str) -> None:
    lengths = [len(candidate) for candidate in formats.candidates(name, Random(1), 100)]
    assert max(lengths) >= 100


def test_an_unknown_format_has_no_candidates() -> None:
    assert list(formats.candidates("phone", Random(1), 0)) == []
