"""Entity tags: strong and weak comparison, lists and `*`."""

import pytest

from xalen_batch.api.http import preconditions

TAG = preconditions.entity_tag(b"\xab\x01")


def test_each_content_coding_has_its_own_tag() -> None:
    assert TAG == '"ab01"'
    assert preconditions.entity_tag(b"\xab\x01", "zstd") == '"ab01-zstd"'


@pytest.mark.parametrize(
    ("field", "match", "none_match"),
    [
        (None, True, True),
        ("*", True, False),
        (" * ", True, False),
        ('"ab01"', True, False),
        ('"x", "ab01"', True, False),
        ('"x","ab01",', True, False),
        ('"a,b", "ab01"', True, False),
        # Weak tags are the same for If-None-Match, and never for If-Match.
        ('W/"ab01"', False, False),
        ('"x", W/"ab01"', False, False),
        ('"x"', False, True),
        ('"ab01-zstd"', False, True),
        ('"AB01"', False, True),
        ("ab01", False, True),
        ("", False, True),
        ('"*"', False, True),
    ],
)
def test_lists_of_tags(field: str | None, match: bool, none_match: bool) -> None:
    assert preconditions.if_match(field, TAG) is match
    assert preconditions.if_none_match(field, TAG) is none_match


@pytest.mark.parametrize(
    ("field", "is_served"),
    [
        (None, True),
        ('"ab01"', True),
        (' "ab01" ', True),
        ('W/"ab01"', False),
        ('"x"', False),
        ('"ab01", "x"', False),
        ("*", False),
        ("Sun, 29 Nov 2026 10:00:00 GMT", False),
    ],
)
def test_a_range_needs_the_same_strong_tag(field: str | None, is_served: bool) -> None:
    assert preconditions.if_range(field, TAG) is is_served
