"""Downloads give each line once, and never bytes that are not the file's."""

import base64
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xalen import DownloadError
from xalen.batch.download import ResumableBody

CONTENT = b"".join(b"line %d \xc3\xb6\n" % number for number in range(200)) + b"no line end"
TAG = '"tag"'
DIGEST = f"sha-256=:{base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()}:"
WHOLE = {"etag": TAG, "repr-digest": DIGEST, "content-length": str(len(CONTENT))}


def rest(first: int) -> dict[str, str]:
    return {**WHOLE, "content-range": f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}"}


@given(st.lists(st.integers(1, 700), max_size=8), st.booleans(), st.integers(1, 900))
def test_each_line_comes_once_whatever_breaks(
    breaks: list[int], has_ranges: bool, size: int
) -> None:
    body, found = ResumableBody(), []
    for length in [*breaks, len(CONTENT)]:
        first = 0
        fields = body.fields()
        if has_ranges and body.received:
            first = body.received
            assert fields == {
                "Accept-Encoding": "identity",
                "Range": f"bytes={first}-",
                "If-Range": TAG,
            }
            body.begin(206, rest(first))
        else:
            body.begin(200, WHOLE if has_ranges else {"content-length": WHOLE["content-length"]})
        arrived = CONTENT[first : first + length]
        for start in range(0, len(arrived), size):
            found += body.take(arrived[start : start + size])
        assert body.is_short == (body.received < len(CONTENT))
        if not body.is_short:
            break
    found += body.end()
    assert found == CONTENT.split(b"\n")


def test_a_changed_file_is_not_joined() -> None:
    body = ResumableBody()
    body.begin(200, WHOLE)
    list(body.take(CONTENT[:10]))
    with pytest.raises(DownloadError, match="changed"):
        body.begin(200, {**WHOLE, "etag": '"other"'})


@pytest.mark.parametrize("value", ["", "bytes */20", "bytes 11-19/20"])
def test_another_range_than_asked_for_is_an_error(value: str) -> None:
    body = ResumableBody()
    body.begin(200, WHOLE)
    list(body.take(CONTENT[:10]))
    with pytest.raises(DownloadError, match="another range"):
        body.begin(206, {**WHOLE, "content-range": value})


def test_damaged_bytes_are_an_error_at_the_end() -> None:
    body = ResumableBody()
    body.begin(200, WHOLE)
    list(body.take(CONTENT.replace(b"line 7 ", b"line 8 ")))
    with pytest.raises(DownloadError, match="SHA-256"):
        list(body.end())


def test_a_weak_tag_is_no_base_for_a_range() -> None:
    body = ResumableBody()
    body.begin(200, {"etag": 'W/"tag"'})
    list(body.take(b"abc"))
    assert "Range" not in body.fields()


def test_memory_holds_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    body = ResumableBody()
    body.begin(200, {})
    for _ in range(1000):
        assert len(list(body.take(b"x" * 1000 + b"\n" + b"y" * 10))) == 1
        kept: Any = vars(body)["_rest"]
        assert len(kept) <= 1010
