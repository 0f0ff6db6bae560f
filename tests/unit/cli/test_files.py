"""`files` on the command line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.unit.cli.fake_api import Api, serving
from xalen_batch.cli import client
from xalen_batch.cli.main import app

FILE: dict[str, Any] = {
    "id": "file-1",
    "object": "file",
    "bytes": 1_234_567,
    "created_at": 1_795_800_000,
    "expires_at": None,
    "filename": "tickets \x1b[2J.jsonl",
    "purpose": "batch",
    "status": "processed",
    "status_details": None,
}
DELETED = {"id": "file-1", "object": "file", "deleted": True}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(client, "PAUSES", ())
    with serving() as server:
        yield server


def files(api: Api, *arguments: str) -> Result:
    return CliRunner().invoke(
        app, ["files", *arguments, "--base-url", api.base_url, "--api-key", "xln_test_secret"]
    )


def ok(value: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps(value).encode()


def page(*files: dict[str, Any], has_more: bool = False) -> tuple[int, dict[str, str], bytes]:
    return ok(
        {
            "object": "list",
            "data": files,
            "first_id": None,
            "last_id": files[-1]["id"] if files else None,
            "has_more": has_more,
        }
    )


def test_upload_prints_the_id_and_sends_the_bytes(api: Api, tmp_path: Path) -> None:
    api.answers = [ok(FILE)]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"a": 1}\n')
    result = files(api, "upload", str(path))
    assert (result.exit_code, result.stdout) == (0, "file-1\n")
    method, target, _, body = api.requests[0]
    assert (method, target) == ("POST", "/v1/files")
    assert b'filename="in.jsonl"' in body
    assert b'{"a": 1}\n' in body


def test_a_file_that_is_not_there_is_named_before_anything_is_sent(api: Api) -> None:
    result = files(api, "upload", "missing.jsonl")
    assert result.exit_code == 1
    assert "missing.jsonl is not a file" in result.stderr
    assert api.requests == []


def test_the_list_shows_the_newest_and_says_that_there_are_more(api: Api) -> None:
    api.answers = [page(FILE, has_more=True)]
    result = files(api, "list", "--limit", "1", "--purpose", "batch")
    assert api.requests[0][1] == "/v1/files?limit=1&purpose=batch"
    row = result.stdout.splitlines()[-1]
    for text in ("file-1", "tickets \\x1b[2J.jsonl", "1,234,567", "2026-11-27 17:20:00 UTC"):
        assert text in row
    assert "These are the newest 1. --limit shows more." in result.stderr


def test_json_of_a_list_has_the_pages_together(api: Api) -> None:
    api.answers = [
        page(*[FILE | {"id": f"file-{n}"} for n in range(100)], has_more=True),
        page(FILE | {"id": "file-100"}),
    ]
    found = json.loads(files(api, "list", "--limit", "150", "--json").stdout)
    assert [file["id"] for file in found["data"]] == [f"file-{n}" for n in range(101)]
    assert (found["object"], found["has_more"]) == ("list", False)
    assert api.requests[1][1] == "/v1/files?limit=50&after=file-99"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "No files yet. `xalen-batch files upload FILE`"),
        (["--purpose", "batch"], "No file has the purpose batch."),
    ],
)
def test_an_empty_list_says_what_to_do(api: Api, options: list[str], said: str) -> None:
    api.answers = [page()]
    result = files(api, "list", *options)
    assert (result.exit_code, result.stdout) == (0, "")
    assert said in result.stderr


def test_show_has_every_field(api: Api) -> None:
    api.answers = [ok(FILE)]
    shown = dict(
        line.split(maxsplit=1) for line in files(api, "show", "file-1").stdout.splitlines()
    )
    assert set(shown) == set(FILE) - {"object"}
    assert (shown["bytes"], shown["expires_at"]) == ("1,234,567", "-")


def test_download_writes_the_bytes_as_they_are(api: Api, tmp_path: Path) -> None:
    api.answers = [(200, {}, b"\xff\x00lines\n")]
    assert files(api, "download", "file-1", "-o", str(tmp_path / "copy")).exit_code == 0
    assert (tmp_path / "copy").read_bytes() == b"\xff\x00lines\n"
    assert api.requests[0][1] == "/v1/files/file-1/content"


def test_delete_names_each_file_and_the_one_that_could_not_be_deleted(api: Api) -> None:
    refused = json.dumps(
        {"error": {"message": "No such File object.", "type": "t", "param": None, "code": None}}
    ).encode()
    api.answers = [ok(DELETED), (404, {}, refused)]
    result = files(api, "delete", "file-1", "file-2", "file-1")
    assert result.exit_code == 1
    assert "file-1 is deleted." in result.stderr
    assert "file-2: No such File object." in result.stderr
    assert [request[:2] for request in api.requests] == [
        ("DELETE", "/v1/files/file-1"),
        ("DELETE", "/v1/files/file-2"),
    ]


def test_json_of_a_delete_is_a_list(api: Api) -> None:
    api.answers = [ok(DELETED)]
    assert json.loads(files(api, "delete", "file-1", "--json").stdout) == {
        "object": "list",
        "data": [DELETED],
        "has_more": False,
    }


@pytest.mark.parametrize("command", ["show", "download", "delete"])
def test_an_id_of_something_else_is_a_usage_error(api: Api, command: str) -> None:
    result = files(api, command, "batch_1")
    assert result.exit_code == 2
    assert api.requests == []
