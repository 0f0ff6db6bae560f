"""A download that breaks off goes on where it was, and its bytes are checked."""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.fake_api import Api, serving
from xalen_batch.cli import client as client_module
from xalen_batch.cli import download
from xalen_batch.cli.client import ApiClient
from xalen_batch.cli.connection import ApiConnection
from xalen_batch.cli.failures import ERROR, ApiError, Failed, Unreachable

BODY = bytes(range(256)) * 4096
SIZE = len(BODY)
TAG = '"a"'
STORED = {
    "etag": TAG,
    "accept-ranges": "bytes",
    "repr-digest": f"sha-256=:{base64.b64encode(hashlib.sha256(BODY).digest()).decode()}:",
}
Prepared = tuple[int, dict[str, str], bytes]


@pytest.fixture
def api() -> Iterator[Api]:
    with serving() as server:
        yield server


@pytest.fixture
def client(api: Api, monkeypatch: pytest.MonkeyPatch) -> ApiClient:
    monkeypatch.setattr(client_module, "PAUSES", (0.01, 0.01))
    return ApiClient(ApiConnection(api.base_url, "xln_test_secret"))


def whole(sent: int = SIZE, **fields: str) -> Prepared:
    """An answer with the whole body, of which `sent` bytes are sent before it breaks off."""
    return 200, {"content-length": str(SIZE), **STORED, **fields}, BODY[:sent]


def part(start: int, end: int = SIZE, **fields: str) -> Prepared:
    """An answer to a Range from `start`, which breaks off at `end`."""
    told = {
        "content-length": str(SIZE - start),
        "content-range": f"bytes {start}-{SIZE - 1}/{SIZE}",
    }
    return 206, {**told, **STORED, **fields}, BODY[start:end]


def ranges(api: Api) -> list[tuple[str | None, str | None]]:
    """The Range and If-Range of each request."""
    return [(fields.get("range"), fields.get("if-range")) for _, _, fields, _ in api.requests]


def fetch(client: ApiClient, target: Path) -> download.Delivered:
    return download.fetch(client, "batch_1", target, errors=False, is_ended=True)


def test_the_rest_is_asked_for_and_progress_goes_on(api: Api, client: ApiClient) -> None:
    api.answers = [whole(300_000), part(300_000, 700_000), part(700_000)]
    received, moves = bytearray(), []
    client.download("/f", received.extend, lambda *done: moves.append(done), is_fixed=True)
    assert bytes(received) == BODY
    assert ranges(api) == [
        (None, None),
        ("bytes=300000-", TAG),
        ("bytes=700000-", TAG),
    ]
    done = [bytes_ for bytes_, _ in moves]
    assert done == sorted(done)
    assert moves[-1] == (SIZE, SIZE)
    assert {total for _, total in moves} == {SIZE}


@pytest.mark.parametrize(
    "fields", [{}, {"etag": TAG}], ids=["without tags", "with a tag, ignoring ranges"]
)
def test_a_server_without_ranges_sends_all_again(
    fields: dict[str, str], api: Api, client: ApiClient
) -> None:
    api.answers = [
        (200, {"content-length": str(SIZE), **fields}, BODY[:300_000]),
        (200, {"content-length": str(SIZE), **fields}, BODY),
    ]
    received = bytearray()
    client.download("/f", received.extend, lambda *_: None, is_fixed=True)
    assert bytes(received) == BODY


def test_rows_that_became_an_object_meanwhile_are_resumed_and_checked(
    api: Api, client: ApiClient
) -> None:
    rendered = (200, {"content-length": str(SIZE)}, BODY[:300_000])
    api.answers = [rendered, whole(500_000), part(500_000)]
    received = bytearray()
    client.download("/f", received.extend, lambda *_: None, is_fixed=True)
    assert bytes(received) == BODY
    assert [asked for asked, _ in ranges(api)] == [None, None, "bytes=500000-"]


def test_a_weak_tag_does_not_promise_the_same_bytes(api: Api, client: ApiClient) -> None:
    api.answers = [whole(300_000, etag='W/"a"'), whole(etag='W/"a"')]
    received = bytearray()
    client.download("/f", received.extend, lambda *_: None, is_fixed=True)
    assert (bytes(received), ranges(api)[1]) == (BODY, (None, None))


def test_pauses_start_again_while_bytes_arrive(api: Api, client: ApiClient) -> None:
    steps = range(0, SIZE, 100_000)
    api.answers = [whole(100_000), *(part(start, start + 100_000) for start in steps[1:])]
    received = bytearray()
    client.download("/f", received.extend, lambda *_: None, is_fixed=True)
    assert bytes(received) == BODY
    assert len(api.requests) == len(steps) > 3


def test_a_download_without_progress_ends_and_keeps_nothing(
    api: Api, client: ApiClient, tmp_path: Path
) -> None:
    api.answers = [whole(300_000), part(300_000, 300_000), part(300_000, 300_000)]
    with pytest.raises(Unreachable, match="middle of the answer"):
        fetch(client, tmp_path / "out.jsonl")
    assert len(api.requests) == 3
    assert list(tmp_path.iterdir()) == []


def refused() -> Prepared:
    return 416, {}, b'{"error": {"message": "Told so.", "type": "t", "param": "p", "code": null}}'


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([(*whole()[:2], BODY[:-1] + b"x")], "SHA-256 digest"),
        ([whole(300_000), (*part(300000)[:2], BODY[300000:-1] + b"x")], "SHA-256 digest"),
        ([whole(300_000), whole(etag='"b"')], "changed while it was downloaded"),
        ([whole(300_000), part(300_001)], "another range"),
        ([whole(300_000), part(300_000, **{"content-range": "bytes */9"})], "another range"),
        ([whole(300_000), refused()], "HTTP 416"),
    ],
)
def test_other_bytes_are_an_error_and_leave_the_old_file(
    answers: list[Prepared], message: str, api: Api, client: ApiClient, tmp_path: Path
) -> None:
    target = tmp_path / "out.jsonl"
    target.write_bytes(b"old")
    api.answers = answers
    with pytest.raises(Failed, match=message) as failed:
        fetch(client, target)
    assert failed.value.exit_code == ERROR
    assert (target.read_bytes(), len(list(tmp_path.iterdir()))) == (b"old", 1)


def test_a_part_may_overlap_what_is_there(api: Api, client: ApiClient) -> None:
    api.answers = [whole(300_000), part(200_000)]
    received = bytearray()
    client.download("/f", received.extend, lambda *_: None, is_fixed=True)
    assert bytes(received) == BODY


def test_a_file_that_is_deleted_meanwhile_is_an_error(api: Api, client: ApiClient) -> None:
    api.answers = [whole(300_000), (404, {}, b"{}")]
    with pytest.raises(ApiError, match="HTTP 404"):
        client.download("/f", lambda _: None, lambda *_: None, is_fixed=True)


def test_digests_of_other_kinds_are_not_compared(api: Api, client: ApiClient) -> None:
    digests = ["sha-512=:AAAA:", "sha-256=:AAAA:", f"sha-256=:{'A' * 42}==:", "nonsense", ""]
    for digest in digests:
        api.answers = [whole(**{"repr-digest": digest})]
        client.download("/f", lambda _: None, lambda *_: None, is_fixed=True)


def test_one_of_several_digests_is_compared(api: Api, client: ApiClient) -> None:
    api.answers = [whole(**{"repr-digest": f"sha-512=:AAAA:, sha-256=:{'A' * 43}=:"})]
    with pytest.raises(Failed, match="SHA-256 digest"):
        client.download("/f", lambda _: None, lambda *_: None, is_fixed=True)
