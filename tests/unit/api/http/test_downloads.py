"""Downloads: their headers, ranges, preconditions and encodings, without a server."""

import asyncio
import hashlib
from base64 import b64encode
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from fastapi import Request

from xalen_batch.api.http import preconditions
from xalen_batch.api.http.downloads import download
from xalen_batch.errors import PreconditionFailed, RangeNotSatisfiable
from xalen_batch.results.content import Content, Rendered, Stored, Zstd

BYTES = bytes(range(256)) * 4
PACKED = b"packed"
SHA256 = hashlib.sha256(BYTES).digest()
DIGEST = f"sha-256=:{b64encode(SHA256).decode()}:"
TAG, ZSTD_TAG = (preconditions.entity_tag(SHA256, coding) for coding in (None, "zstd"))


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def stored(*, has_zstd: bool = False, is_lost: bool = False) -> Stored:
    def chunks(start: int, end: int) -> Iterator[bytes]:
        for begin in range(start, end, 100):
            yield BYTES[begin : min(end, begin + 100)]

    zstd = Zstd(lambda: iter([PACKED]), len(PACKED), lambda: not is_lost) if has_zstd else None
    return Stored(chunks, lambda: None, len(BYTES), SHA256, zstd)


def unread() -> Iterator[bytes]:
    raise AssertionError("the content was read")
    yield b""


def ask(
    content: Content, method: str = "GET", /, *, name: str = "a.jsonl", **fields: str
) -> Answer:
    """The answer to a request with these fields; `if_match` is If-Match."""
    headers = [
        (field.replace("_", "-").encode(), value.encode()) for field, value in fields.items()
    ]
    scope = {"type": "http", "method": method, "headers": headers, "asgi": {"spec_version": "2.4"}}
    sent = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    response = download(Request(scope), content, name)
    asyncio.run(response(scope, None, send))  # type: ignore[arg-type]
    return Answer(
        response.status_code,
        dict(response.headers),
        b"".join(message.get("body", b"") for message in sent),  # type: ignore[misc]
    )


def test_a_whole_download_names_its_bytes() -> None:
    found = ask(stored())
    assert (found.status, found.body) == (200, BYTES)
    assert found.headers == {
        "content-type": "application/octet-stream",
        "content-length": "1024",
        "content-disposition": "attachment; filename=\"a.jsonl\"; filename*=UTF-8''a.jsonl",
        "x-content-type-options": "nosniff",
        "etag": TAG,
        "accept-ranges": "bytes",
        "repr-digest": DIGEST,
        "content-digest": DIGEST,
        "cache-control": "private, no-cache",
    }


def test_head_reads_nothing_and_has_the_digest_of_the_file_but_of_no_content() -> None:
    content = Stored(lambda *_: unread(), lambda: None, len(BYTES), SHA256)
    got = ask(stored()).headers
    del got["content-digest"]
    for fields in ({}, {"range": "bytes=0-9"}, {"range": "bytes=9999-"}):
        found = ask(content, "HEAD", **fields)
        assert (found.status, found.headers, found.body) == (200, got, b"")


@pytest.mark.parametrize(
    ("field", "start", "end"), [("bytes=0-9", 0, 10), ("bytes=1000-", 1000, 1024)]
)
def test_a_range_has_the_digest_of_the_whole(field: str, start: int, end: int) -> None:
    for fields in ({}, {"if_range": TAG}, {"accept_encoding": "zstd"}):
        found = ask(stored(has_zstd=True), range=field, **fields)
        assert (found.status, found.body) == (206, BYTES[start:end])
        assert found.headers["content-range"] == f"bytes {start}-{end - 1}/1024"
        assert found.headers["content-length"] == str(end - start)
        assert (found.headers["etag"], found.headers["repr-digest"]) == (TAG, DIGEST)
        assert not {"content-digest", "content-encoding"} & set(found.headers)


@pytest.mark.parametrize("tag", ['"other"', f"W/{TAG}", ZSTD_TAG, "*"])
def test_a_range_of_other_bytes_is_answered_with_the_whole(tag: str) -> None:
    for asked in ("bytes=0-9", "bytes=9999-"):
        found = ask(stored(), range=asked, if_range=tag)
        assert (found.status, found.body) == (200, BYTES)


def test_a_range_behind_the_end_is_an_error() -> None:
    with pytest.raises(RangeNotSatisfiable):
        ask(stored(), range="bytes=1024-")


def test_if_none_match_saves_the_download() -> None:
    content = Stored(lambda *_: unread(), lambda: None, len(BYTES), SHA256)
    for method in ("GET", "HEAD"):
        found = ask(content, method, if_none_match=f'"x", W/{TAG}')
        assert (found.status, found.body) == (304, b"")
        assert (found.headers["etag"], found.headers["cache-control"]) == (
            TAG,
            "private, no-cache",
        )
        assert not {"content-length", "content-type"} & set(found.headers)
    # It comes before the range.
    assert ask(content, if_none_match=TAG, range="bytes=9999-").status == 304
    assert ask(stored(), if_none_match='"x"').status == 200


def test_if_match_refuses_other_bytes() -> None:
    assert ask(stored(), if_match=f'"x", {TAG}').status == 200
    with pytest.raises(PreconditionFailed, match=TAG):
        ask(stored(), if_match='"x"', if_none_match=TAG)


def test_the_stored_encoding_is_sent_to_clients_that_name_it_alone() -> None:
    content = stored(has_zstd=True)
    found = ask(content, accept_encoding="zstd")
    assert (found.status, found.body) == (200, PACKED)
    assert found.headers["content-encoding"] == "zstd"
    assert found.headers["content-length"] == str(len(PACKED))
    assert (found.headers["etag"], found.headers["vary"]) == (ZSTD_TAG, "accept-encoding")
    # Repr-Digest would be that of the encoded bytes.
    assert found.headers["accept-ranges"] == "none"
    assert not {"repr-digest", "content-digest"} & set(found.headers)
    head = ask(content, "HEAD", accept_encoding="zstd")
    assert (head.headers, head.body) == (found.headers, b"")
    for plain in (ask(content), ask(content, accept_encoding="gzip, zstd")):
        assert (plain.body, plain.headers["vary"]) == (BYTES, "accept-encoding")
        assert plain.headers["etag"] == TAG


def test_each_encoding_has_its_own_precondition() -> None:
    content = stored(has_zstd=True)
    assert ask(content, accept_encoding="zstd", if_none_match=ZSTD_TAG).status == 304
    assert ask(content, accept_encoding="zstd", if_none_match=TAG).body == PACKED
    assert ask(content, if_none_match=ZSTD_TAG).body == BYTES


@pytest.mark.parametrize("size", [None, 1024])
def test_rendered_lines_are_sent_whole(size: int | None) -> None:
    content = Rendered(lambda: iter([BYTES]), size)
    found = ask(content, range="bytes=0-9", if_none_match="*", accept_encoding="zstd")
    assert (found.status, found.body) == (200, BYTES)
    assert found.headers.get("content-length") == (None if size is None else "1024")
    assert found.headers["accept-ranges"] == "none"
    assert not {"etag", "repr-digest", "content-digest", "vary"} & set(found.headers)


@pytest.mark.parametrize("name", ['a".jsonl', "a\\b", "../a", "ü.jsonl", "☕", "a; filename=b"])
def test_a_name_cannot_leave_its_header(name: str) -> None:
    header = ask(stored(), name=name).headers["content-disposition"]
    assert header.isascii()
    assert header.count('"') == 2
    assert not {"/", "\\"} & set(header.split('"')[1])


def test_rows_that_stand_in_for_a_lost_object_are_sent_plain() -> None:
    found = ask(stored(has_zstd=True, is_lost=True), accept_encoding="zstd")
    assert found.body == BYTES
    assert found.headers["etag"] == TAG
    assert "content-encoding" not in found.headers
