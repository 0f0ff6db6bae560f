"""Downloads give each line once, and never bytes that are not the file's."""

import base64
import hashlib
import itertools
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xalen import XALEN, DownloadError
from xalen.batch import outage
from xalen.batch.download import ResumableBody, lines

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


def answers_of(*bodies: bytes) -> XALEN:
    """A client whose downloads get these bodies one after the other, each with all its fields."""
    left = list(bodies)

    def answering(request: httpx2.Request) -> httpx2.Response:
        first = int(request.headers.get("range", "bytes=0-")[6:-1])
        fields = rest(first) if first else WHOLE
        announced = {**fields, "content-length": str(len(CONTENT) - first)}
        # A stream is not compared with its announced length.
        return httpx2.Response(
            206 if first else 200, headers=announced, stream=httpx2.ByteStream(left.pop(0))
        )

    http = httpx2.Client(transport=httpx2.MockTransport(answering))
    return XALEN(api_key="xln_test_a", base_url="http://stub", http_client=http)


def test_an_answer_that_is_too_short_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_PAUSE", 0)
    client = answers_of(CONTENT[:100], CONTENT[100:])
    assert list(lines(client, "file-1")) == CONTENT.split(b"\n")


def test_only_time_without_a_byte_counts_as_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count(step=600)
    monkeypatch.setattr(outage.time, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(outage, "FIRST_PAUSE", 0)
    pieces = [CONTENT[start : start + 300] for start in range(0, len(CONTENT), 300)]
    assert len(pieces) > 5
    assert list(lines(answers_of(*pieces), "file-1")) == CONTENT.split(b"\n")
    with pytest.raises(openai.APIConnectionError):
        list(lines(answers_of(CONTENT[:10], b"", b"", b"", b""), "file-1"))
