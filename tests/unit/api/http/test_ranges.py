"""The Range field: which bytes it asks for, and when the whole content answers it."""

import pytest

from xalen_batch.api.http import ranges
from xalen_batch.errors import RangeNotSatisfiable


@pytest.mark.parametrize(
    ("field", "found"),
    [
        ("bytes=0-0", range(1)),
        ("bytes=0-", range(100)),
        ("bytes=99-", range(99, 100)),
        ("bytes=10-19", range(10, 20)),
        ("bytes=90-99", range(90, 100)),
        ("bytes=90-4000", range(90, 100)),
        ("bytes=-1", range(99, 100)),
        ("bytes=-100", range(100)),
        ("bytes=-4000", range(100)),
        ("BYTES=5-6", range(5, 7)),
        ("bytes= ,5-6, ,", range(5, 7)),
    ],
)
def test_one_range(field: str, found: range) -> None:
    assert ranges.parse(field, 100) == found


@pytest.mark.parametrize(
    "field",
    [
        None,
        "bytes=0-1,5-6",
        "bytes=-1,0-1",
        "lines=0-1",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=,",
        "bytes=a-b",
        "bytes=5",
        "bytes=5-4",
        "bytes=500-400",
        "bytes=--5",
        "bytes=+1-2",
        "bytes=1-2-3",
        "bytes=1.0-2",
        "bytes=٣-٤",
        "bytes=0-1; bytes=3-4",
        f"bytes=0-{'9' * 5000}",
        f"bytes={'9' * 5000}-",
    ],
)
def test_the_whole_content_answers_any_other_field(field: str | None) -> None:
    assert ranges.parse(field, 100) is None


@pytest.mark.parametrize("field", ["bytes=100-", "bytes=100-100", "bytes=200-300", "bytes=-0"])
def test_a_range_behind_the_end_is_refused_with_the_size(field: str) -> None:
    with pytest.raises(RangeNotSatisfiable, match="has 100 bytes") as raised:
        ranges.parse(field, 100)
    assert raised.value.headers == {"Content-Range": "bytes */100"}


@pytest.mark.parametrize("field", ["bytes=0-", "bytes=-5", "bytes=5-"])
def test_nothing_has_no_parts(field: str) -> None:
    assert ranges.parse(field, 0) is None
