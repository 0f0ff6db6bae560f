"""Uploads of a batch's input: whole, or in parts, with both kinds of clients."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.unit.client import stub_api
from tests.unit.client.stub_api import KEY, Api
from xalen import XALEN, AsyncXALEN
from xalen.batch import upload
from xalen.batch.source import Source
from xalen.batch.upload import Part, Stored

CONTENT = b'{"url": "/v1/rerank"}\n' * 3
PIECES = [CONTENT[first : first + 20] for first in range(0, len(CONTENT), 20)]
Send = Callable[..., str]


def sync_send(api: Api, source: Source, key: str | None = None) -> str:
    with XALEN(api_key=KEY, base_url=api.base_url, max_retries=0) as client:
        return upload.send(client, source, key)


def async_send(api: Api, source: Source, key: str | None = None) -> str:
    async def main() -> str:
        async with AsyncXALEN(api_key=KEY, base_url=api.base_url, max_retries=0) as client:
            return await upload.async_send(client, source, key)

    return asyncio.run(main())


both = pytest.mark.parametrize("send", [sync_send, async_send])


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setattr(upload, "PART", 20)
    path = tmp_path / "lines.jsonl"
    path.write_bytes(CONTENT)
    return Source.of(path, None, None)


def refuse(monkeypatch: pytest.MonkeyPatch, method: str, part: str, status: int) -> None:
    """Answer requests whose path has this part with an error."""
    handle = stub_api.Handler._uploads

    def uploads(handler: Any, state: dict[str, Any], path: str, body: bytes) -> None:
        if handler.command == method and part in path:
            handler._json(status, {"error": {"message": "refused"}})
        else:
            handle(handler, state, path, body)

    monkeypatch.setattr(stub_api.Handler, "_uploads", uploads)


@both
def test_a_large_file_is_sent_in_parts(api: Api, source: Source, send: Send) -> None:
    api.upload = {}
    assert send(api, source) == "file-in"
    assert api.parts == PIECES
    assert api.contents["input"] == CONTENT
    created = next(body for verb, path, _, body in api.requests if path == "/uploads")
    assert json.loads(created) == {
        "bytes": len(CONTENT),
        "filename": "lines.jsonl",
        "mime_type": "application/jsonl",
        "purpose": "batch",
    }
    assert not api.sent("GET", "/uploads/upload_1")


@both
def test_a_file_of_a_parts_size_is_sent_whole(
    api: Api, source: Source, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.upload = {}
    monkeypatch.setattr(upload, "PART", len(CONTENT))
    assert send(api, source, "night-1") == "file-in"
    assert (api.parts, api.contents["input"]) == ([], CONTENT)
    assert api.sent("POST", "/files")[0]["idempotency-key"] == "night-1.file"


@both
def test_a_server_without_uploads_gets_the_whole_file(api: Api, source: Source, send: Send) -> None:
    assert send(api, source) == "file-in"
    assert api.contents["input"] == CONTENT


@both
def test_another_error_is_raised(
    api: Api, source: Source, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.upload = {}
    refuse(monkeypatch, "POST", "/uploads", 400)
    with pytest.raises(openai.BadRequestError):
        send(api, source)
    assert not api.sent("POST", "/files")


@both
def test_a_key_resumes_the_upload_of_an_earlier_start(
    api: Api, source: Source, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.upload = {}
    api.parts = [PIECES[0], PIECES[2]]
    assert send(api, source, "night-1") == "file-in"
    assert api.sent("POST", "/uploads")[0]["idempotency-key"] == "night-1.upload"
    assert api.contents["input"] == CONTENT
    assert len(api.sent("POST", "/uploads/upload_1/parts")) == len(PIECES) - 2


@both
def test_a_key_finds_the_file_of_an_earlier_start(
    api: Api, source: Source, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.others["POST /uploads"] = {"id": "upload_1", "status": "pending"}
    api.others["GET /uploads/upload_1"] = {"status": "completed", "file": {"id": "file-9"}}
    assert send(api, source, "night-1") == "file-9"
    assert len(api.requests) == 2


@both
def test_a_key_whose_upload_has_expired_begins_another(
    api: Api, source: Source, send: Send
) -> None:
    api.upload = {}
    api.others["GET /uploads/upload_1"] = {"status": "expired", "parts": []}
    assert send(api, source, "night-1") == "file-in"
    assert len(api.sent("POST", "/uploads/upload_2/parts")) == len(PIECES)
    first, second = (headers["idempotency-key"] for headers in api.sent("POST", "/uploads"))
    assert (first, second == first) == ("night-1.upload", False)


@both
def test_a_key_without_the_scope_read_sends_every_part(
    api: Api, source: Source, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.upload = {}
    refuse(monkeypatch, "GET", "/uploads", 403)
    assert send(api, source, "night-1") == "file-in"
    assert api.parts == PIECES


def test_a_stored_part_is_used_once_for_its_content() -> None:
    def part(id: str) -> Part:
        sha256 = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
        return Part(id=id, bytes=3, sha256=sha256)

    stored = Stored([part("part_1"), part("part_2")])
    assert [stored.take(b"foo") for _ in range(3)] == ["part_1", "part_2", None]
    assert stored.take(b"bar") is None
