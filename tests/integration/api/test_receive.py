"""Uploads in all forms that clients send; a failed one leaves nothing behind."""

import hashlib
import io
import socket
from pathlib import Path
from urllib.parse import urlparse

import openai
import pytest

from tests.integration.conftest import Api, multipart
from xalen_batch.config import settings

MiB = 1024 * 1024
EDGE = {"content-type": "multipart/form-data; boundary=edge"}


@pytest.fixture(autouse=True)
def _empty_storage(api: Api) -> None:
    for path in uploads():
        path.unlink()


def uploads() -> list[Path]:
    """The objects on the disk, unfinished ones included."""
    return [
        path
        for path in Path(urlparse(settings().storage).path, "input").glob("**/*")
        if path.is_file()
    ]


def stored() -> int:
    return len(uploads())


@pytest.mark.parametrize("order", [("purpose", "file"), ("file", "purpose")])
def test_fields_come_in_any_order(api: Api, order: tuple[str, str]) -> None:
    parts = {"purpose": ("purpose", None, b"batch"), "file": ("file", "a.jsonl", b"{}\n" * 50_000)}
    kind, body = multipart(*(parts[name] for name in order))
    answer = api.ask("POST", "/v1/files", body, headers={"content-type": kind})
    assert (answer.status, answer.json["bytes"], answer.json["filename"]) == (
        200,
        150_000,
        "a.jsonl",
    )
    assert api.ask("GET", f"/v1/files/{answer.json['id']}/content").body == b"{}\n" * 50_000


def test_bytes_come_back_as_they_were(api: Api) -> None:
    content = b"--edge \r\n--edge-\r\n\r\n" + bytes(range(256)) * 5_000 + b"\r\n--edg"
    file = api.upload(content)
    answer = api.ask(
        "GET", f"/v1/files/{file['id']}/content", headers={"accept": "application/binary"}
    )
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(content).digest()
    assert answer.headers["content-length"] == str(len(content))
    assert answer.headers["content-type"] == "application/octet-stream"


def test_an_empty_file_is_refused_and_leaves_nothing_behind(api: Api) -> None:
    kind, body = multipart(("purpose", None, b"batch"), ("file", "a.jsonl", b""))
    answer = api.ask("POST", "/v1/files", body, headers={"content-type": kind})
    assert (answer.status, answer.error["param"], answer.error["code"]) == (
        400,
        "file",
        "empty_file",
    )
    assert stored() == 0


def test_too_many_form_fields_are_not_called_a_large_file(api: Api) -> None:
    fields = [(f"field{number}", None, b"x") for number in range(20_000)]
    kind, body = multipart(*fields, ("purpose", None, b"batch"), ("file", "a.jsonl", b"{}\n"))
    answer = api.ask("POST", "/v1/files", body, headers={"content-type": kind})
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert answer.error["message"].startswith("The form has more than 100 fields.")
    assert stored() == 0


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("upload", "upload"),
        ("Überstunden ☕.jsonl", "Überstunden ☕.jsonl"),
        ("../../etc/passwd", "../../etc/passwd"),
        ("a\0b\tc.jsonl", "abc.jsonl"),
        ("x" * 400, "x" * 255),
        ("", "upload"),
    ],
)
def test_a_filename_is_kept_and_safe_in_the_header(api: Api, sent: str, shown: str) -> None:
    kind, body = multipart(("file", sent, b"{}"), ("purpose", None, b"batch"))
    file = api.ask("POST", "/v1/files", body, headers={"content-type": kind}).json
    assert file["filename"] == shown
    header = api.ask("GET", f"/v1/files/{file['id']}/content").headers["content-disposition"]
    plain = header.split('"')[1]
    assert plain.isascii()
    assert "/" not in plain


def test_expiry_is_taken_from_the_form(api: Api) -> None:
    file = api.client.files.create(
        file=b"{}", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at == file.created_at + 3600


def test_expiry_may_be_one_field_in_json(api: Api) -> None:
    kind, body = multipart(
        ("file", "a", b"{}"),
        ("purpose", None, b"batch"),
        ("expires_after", None, b'{"anchor": "created_at", "seconds": 3600.0}'),
    )
    file = api.ask("POST", "/v1/files", body, headers={"content-type": kind}).json
    assert file["expires_at"] == file["created_at"] + 3600


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        *(
            ([("file", "a", b"{}"), ("purpose", None, b"batch"), (name, None, value)], name)
            for name, value in (
                ("expires_after", b"3600"),
                ("expires_after", b'{"anchor": "created_at"}'),
                ("expires_after", b'{"anchor": "created_at", "seconds": 3600, "second": 1}'),
                ("expires_after.seconds", b"3600"),
                ("expires_after_seconds", b"3600"),
                ("expiresAfter[seconds]", b"3600"),
                ("Purpose", b"batch"),
            )
        ),
        (
            [
                ("file", "a", b"{}"),
                ("purpose", None, b"batch"),
                ("expires_after", None, b'{"anchor": "created_at", "seconds": 3600}'),
                ("expires_after[seconds]", None, b"7200"),
            ],
            "expires_after",
        ),
        ([("purpose", None, b"batch")], "file"),
        ([("file", "a", b"{}")], "purpose"),
        ([("file", "a", b"{}"), ("purpose", None, b"batch_output")], "purpose"),
        ([("file", "a", b"{}"), ("purpose", None, b"\xff\0")], "purpose"),
        ([("file", "a", b"{}"), ("file", "b", b"{}"), ("purpose", None, b"batch")], "file"),
        (
            [
                ("file", "a", b"{}"),
                ("purpose", None, b"batch"),
                ("expires_after[seconds]", None, b"3600"),
            ],
            "expires_after[anchor]",
        ),
        (
            [
                ("file", "a", b"{}"),
                ("purpose", None, b"batch"),
                ("expires_after[anchor]", None, b"created_at"),
                ("expires_after[seconds]", None, b"00036000000"),
            ],
            "expires_after[seconds]",
        ),
    ],
)
def test_a_form_that_is_wrong_leaves_nothing_behind(
    api: Api, parts: list[tuple[str, str | None, bytes]], param: str
) -> None:
    kind, body = multipart(*parts)
    answer = api.ask("POST", "/v1/files", body, headers={"content-type": kind})
    assert (answer.status, answer.error["param"]) == (400, param)
    assert stored() == 0


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (EDGE, multipart(("purpose", None, b"batch"), ("file", "a", b"{}"))[1][:-6]),
        (EDGE, b"nothing of the kind"),
        (EDGE, b""),
        ({"content-type": "multipart/form-data"}, b"--x"),
        ({"content-type": "multipart/form-data; boundary=" + "b" * 5000}, b"--x"),
        ({"content-type": "application/json"}, b"{}"),
        (EDGE, b"--edge\r\nContent-Disposition: form-data; name=" + b"x" * 100_000 + b"\r\n\r\n"),
    ],
    ids=["cut", "no form", "empty", "no boundary", "long boundary", "json", "long header"],
)
def test_a_body_that_is_no_form_is_400_and_leaves_nothing_behind(
    api: Api, headers: dict[str, str], body: bytes
) -> None:
    answer = api.ask("POST", "/v1/files", body, headers=headers)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert stored() == 0


def test_other_fields_are_bounded(api: Api) -> None:
    kind, body = multipart(
        ("note", None, b"x" * 65_537), ("file", "a", b"{}"), ("purpose", None, b"batch")
    )
    assert api.ask("POST", "/v1/files", body, headers={"content-type": kind}).status == 413
    assert stored() == 0


def test_a_file_over_the_limit_is_413_for_a_real_client(api: Api) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        api.client.files.create(file=io.BytesIO(bytes(201 * MiB)), purpose="batch")
    assert (caught.value.status_code, caught.value.code) == (413, "file_too_large")
    assert stored() == 0


def test_the_limit_itself_passes_and_one_byte_more_does_not(api: Api, configure: object) -> None:
    configure(max_file_bytes=5 * MiB)  # type: ignore[operator]
    assert api.upload(bytes(5 * MiB))["bytes"] == 5 * MiB
    kind, body = multipart(("purpose", None, b"batch"), ("file", "a", bytes(5 * MiB + 1)))
    answer = api.ask("POST", "/v1/files", body, headers={"content-type": kind})
    assert (answer.status, answer.error["code"]) == (413, "file_too_large")
    assert stored() == 1


def test_a_chunked_body_over_the_limit_is_413(api: Api, configure: object) -> None:
    configure(max_file_bytes=MiB)  # type: ignore[operator]
    _, body = multipart(("purpose", None, b"batch"), ("file", "a", bytes(8 * MiB)))
    pieces = iter([body[start : start + 65_536] for start in range(0, len(body), 65_536)])
    answer = api.client._client.post(
        f"http://127.0.0.1:{api.port}/v1/files",
        content=pieces,
        headers={**EDGE, "authorization": f"Bearer {api.key}"},
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "file_too_large")
    assert stored() == 0


def test_an_upload_without_a_key_is_401_before_its_body_is_stored(api: Api) -> None:
    kind, body = multipart(("purpose", None, b"batch"), ("file", "a", bytes(3 * MiB)))
    assert (
        api.ask("POST", "/v1/files", body, headers={"content-type": kind}, key=None).status == 401
    )
    assert stored() == 0


def test_an_upload_that_breaks_off_leaves_nothing_behind(api: Api) -> None:
    head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {api.key}\r\n"
    _, body = multipart(("purpose", None, b"batch"), ("file", "a", bytes(9 * MiB)))
    with socket.create_connection(("127.0.0.1", api.port)) as connection:
        connection.sendall(
            f"{head}content-type: {EDGE['content-type']}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body[: 8 * MiB]
        )
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65_536):
            pass
    # The connection closes before the server has cleaned up; each request lets it go on.
    assert any(stored() == 0 for _ in range(200) if api.ask("GET", "/livez").status == 200)
    assert api.ask("GET", "/v1/files").json["data"] == []
