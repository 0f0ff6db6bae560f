"""A key's checksum tells a possible key from other text."""

import re
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xalen_batch.accounts import accounts, secrets
from xalen_batch.errors import Unauthenticated

# A key in the form of `new`, as a literal: scanners know the form, so it must not change.
KNOWN = "xln_test_0123456789ABCDEFGHIJKLMNOPQRSTUV1ggZdL"


@pytest.mark.parametrize(("livemode", "prefix"), [(False, "xln_test_"), (True, "xln_live_")])
def test_a_new_key_has_a_prefix_random_digits_and_their_checksum(
    livemode: bool, prefix: str
) -> None:
    made = {secrets.new(livemode) for _ in range(100)}
    assert len(made) == 100
    for secret in made:
        assert re.fullmatch(prefix + "[0-9A-Za-z]{38}", secret)
        assert secrets.is_possible(secret)
        assert secrets.shown(secret) == secret[:13]


def test_the_checksum_is_crc32_in_base_62() -> None:
    digits = KNOWN[9:41]
    value = 0
    for digit in KNOWN[41:]:
        value = value * 62 + secrets.BASE62.index(digit)
    assert value == zlib.crc32(digits.encode())
    assert secrets.is_possible(KNOWN)


@given(st.integers(0, 37), st.sampled_from(secrets.BASE62))
def test_a_key_with_one_digit_mistyped_is_none(place: int, digit: str) -> None:
    at = len("xln_test_") + place
    mistyped = KNOWN[:at] + digit + KNOWN[at + 1 :]
    assert secrets.is_possible(mistyped) == (mistyped == KNOWN)


def test_a_key_that_is_older_than_the_checksum_can_still_be_one() -> None:
    assert secrets.is_possible("xln_live_" + "a" * 32)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "xln_test_",
        KNOWN[:-1],
        KNOWN + "0",
        KNOWN + "\n",
        " " + KNOWN,
        KNOWN.replace("test", "prod"),
        "sk-" + "a" * 45,
        "xln_test_" + "é" * 32,
    ],
)
def test_what_has_not_the_form_of_a_key_is_none(text: str) -> None:
    assert not secrets.is_possible(text)


class NoDatabase:
    def execute(self, *_: object) -> None:
        raise AssertionError("the database was asked")


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        (KNOWN[:-1] + "0", "mistyped or cut short"),
        (KNOWN[:30], "cut short"),
        ("sk-1", "key of this server"),
    ],
)
def test_what_cannot_be_a_key_is_refused_without_asking_the_database(
    secret: str, words: str
) -> None:
    with pytest.raises(Unauthenticated, match=words):
        accounts.authenticate(NoDatabase(), secret)  # type: ignore[arg-type]


def test_a_key_is_looked_up_by_its_hash_and_nothing_of_the_key_itself_reaches_the_database() -> (
    None
):
    asked = []

    class Database:
        def execute(self, statement: object, values: object) -> None:
            asked.append((str(statement), values))
            raise StopIteration

    with pytest.raises(StopIteration):
        accounts.authenticate(Database(), KNOWN)  # type: ignore[arg-type]
    [(statement, values)] = asked
    assert values == {"hash": secrets.digest(KNOWN)}
    assert len(secrets.digest(KNOWN)) == 32
    assert statement.endswith("WHERE api_keys.hash = :hash")
