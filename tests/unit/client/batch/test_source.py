"""What `client.batches.run` takes: a file, lines, or bodies."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from xalen.batch.source import Source

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "ö"}]}


def lines(
    requests: Iterable[Mapping[str, Any]], endpoint: str | None = None, model: str | None = None
) -> list[Any]:
    return [json.loads(line) for line in Source.of(requests, endpoint, model).lines()]


def test_a_body_gets_a_line_around_it() -> None:
    assert lines([CHAT, {**CHAT, "model": "b"}], model="a") == [
        {
            "custom_id": "request-1",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "a", **CHAT},
        },
        {
            "custom_id": "request-2",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "b", **CHAT},
        },
    ]


def test_a_line_keeps_what_it_has() -> None:
    whole = {"custom_id": "x", "method": "POST", "url": "/v1/rerank", "body": {"model": "m"}}
    part = {"custom_id": "y", "body": {"model": "m"}}
    assert lines(iter([whole, part])) == [whole, {**whole, "custom_id": "y"}]


def test_an_endpoint_is_known_by_a_field_that_no_other_has() -> None:
    assert Source.of([{"query": "a", "documents": ["b"]}], None, "m").endpoint == "/v1/rerank"
    assert Source.of([{"prompt": "a"}], None, "m").endpoint == "/v1/completions"


@pytest.mark.parametrize(
    ("requests", "told"),
    [
        ([], "no requests"),
        ([{"input": "a"}], "request 1 names no url: give endpoint"),
        ([CHAT, {**CHAT, "seed": {1}}], "request 2 is not JSON: Object of type set"),
        ([{**CHAT, "top_p": float("nan")}], "request 1 is not JSON"),
    ],
)
def test_requests_that_cannot_be_sent_are_refused(
    requests: list[dict[str, Any]], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        Source.of(requests, None, None)


def test_a_file_is_sent_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "night.jsonl"
    content = b'\xef\xbb\xbf{"url": "/v1/embeddings"}\r\n\nnot json'
    path.write_bytes(content)
    source = Source.of(str(path), None, None)
    assert (source.name, source.endpoint) == ("night.jsonl", "/v1/embeddings")
    assert b"".join(source.lines()) == content
    assert Source.of(path, "/v1/rerank", None).endpoint == "/v1/rerank"
    with pytest.raises(ValueError, match="model: a file is sent as it is"):
        Source.of(path, None, "m")


def test_a_file_whose_first_line_names_no_endpoint_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for content in (b"", b"[]\n", b'{"body": {}}\n', b"{\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="first line names no url; give endpoint"):
            Source.of(path, None, None)


def test_two_iterations_do_not_disturb_each_other() -> None:
    source = Source.of([CHAT] * 3, None, "m")
    first = source.lines()
    next(first)
    assert len(list(source.lines())) == 3
    assert len(list(first)) == 2


def test_a_file_that_is_written_to_counts_as_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"url": "/v1/rerank"}\n')
    source = Source.of(path, None, None)
    # Replaced: the open file is still the one that was sent.
    (tmp_path / "b.jsonl").write_bytes(b"other\n")
    (tmp_path / "b.jsonl").replace(path)
    assert source.is_unchanged
    assert b"".join(source.lines()) == b'{"url": "/v1/rerank"}\n'
    source = Source.of(path, "/v1/rerank", None)
    with path.open("ab") as out:
        out.write(b"more\n")
    assert not source.is_unchanged


def test_requests_are_complete_in_the_file_that_is_uploaded() -> None:
    source = Source.of([CHAT], None, "m")
    assert os.fstat(source.file.fileno()).st_size == len(b"".join(source.lines())) > 0
