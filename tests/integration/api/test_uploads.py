"""Uploads in parts over the wire: their answers, their errors, and nothing left behind."""

import hashlib
import io
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from sqlalchemy import text

from tests import factories
from tests.integration.conftest import Answer, Api, multipart
from xalen import XALEN
from xalen.batch import upload as client_upload
from xalen_batch import db, ids, storage, uploads

CONTENT = b"".join(b'{"n": %d}\n' % number for number in range(20_000))
MiB = 1024 * 1024


def begin(api: Api, size: int = len(CONTENT), **fields: object) -> str:
    body = {"bytes": size, "filename": "a.jsonl", "mime_type": "txt", "purpose": "batch", **fields}
    answer = api.ask("POST", "/v1/uploads", body)
    assert answer.status == 200, answer.body
    id: str = answer.json["id"]
    return id


def add(api: Api, upload: str, content: bytes) -> Answer:
    kind, body = multipart(("data", "upload", content))
    return api.ask("POST", f"/v1/uploads/{upload}/parts", body, headers={"content-type": kind})


def added(api: Api, upload: str, content: bytes) -> str:
    answer = add(api, upload, content)
    assert answer.status == 200, answer.body
    id: str = answer.json["id"]
    return id


def complete(api: Api, upload: str, part_ids: list[str], **more: str) -> Answer:
    return api.ask("POST", f"/v1/uploads/{upload}/complete", {"part_ids": part_ids, **more})


def stored() -> set[str]:
    """The names of all stored parts, unfinished ones included."""
    return {path.name for path in (storage.folder() / "parts").glob("*")}


def name_of(part_id: str) -> str:
    return part_id.removeprefix("part_")


def test_the_sdk_uploads_a_file_in_parts(api: Api) -> None:
    upload = api.client.uploads.upload_file_chunked(
        file=CONTENT,
        filename="a.jsonl",
        bytes=len(CONTENT),
        mime_type="text/jsonl",
        purpose="batch",
        part_size=50_000,
    )
    assert (upload.status, upload.bytes, upload.object) == ("completed", len(CONTENT), "upload")
    assert upload.file is not None
    assert (upload.file.filename, upload.file.purpose, upload.file.bytes) == (
        "a.jsonl",
        "batch",
        len(CONTENT),
    )
    assert api.client.files.content(upload.file.id).content == CONTENT
    assert upload.expires_at == upload.created_at + 3600


def test_parts_may_come_in_any_order_and_at_the_same_time(api: Api) -> None:
    upload = begin(api)
    pieces = [CONTENT[start : start + 10_000] for start in range(0, len(CONTENT), 10_000)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda piece: added(api, upload, piece), reversed(pieces)))
    answer = complete(api, upload, found[::-1], md5=hashlib.md5(CONTENT).hexdigest().upper())
    assert answer.status == 200, answer.body
    file = answer.json["file"]
    assert api.ask("GET", f"/v1/files/{file['id']}/content").body == CONTENT
    assert not stored() & {name_of(id) for id in found}


def test_a_repeated_completion_has_the_same_answer(api: Api) -> None:
    upload = begin(api)
    part = added(api, upload, CONTENT)
    first, again = (complete(api, upload, [part]) for _ in range(2))
    assert first.status == 200
    assert again.json == first.json
    assert [file["id"] for file in api.ask("GET", "/v1/files").json["data"]] == [
        first.json["file"]["id"]
    ]
    other = complete(api, upload, [part, part])
    assert (other.status, other.error["code"]) == (400, "upload_not_pending")
    late = add(api, upload, b"x")
    assert (late.status, late.error["code"]) == (400, "upload_not_pending")
    assert api.ask("POST", f"/v1/uploads/{upload}/cancel").status == 400


def test_a_wrong_completion_is_refused_and_can_be_put_right(api: Api) -> None:
    upload = begin(api, 6)
    one, two = added(api, upload, b"one"), added(api, upload, b"two")
    for part_ids, param in (
        ([one, "part_1"], "part_ids[1]"),
        ([one, one], "part_ids[1]"),
        ([one], "part_ids"),
        ([], "part_ids"),
        ([f"part_{ids.new().hex}"], "part_ids[0]"),
    ):
        answer = complete(api, upload, part_ids)
        assert (answer.status, answer.error["param"]) == (400, param)
    swapped = complete(api, upload, [two, one], md5=hashlib.md5(b"onetwo").hexdigest())
    assert (swapped.status, swapped.error["code"]) == (400, "md5_mismatch")
    assert complete(api, upload, [one, two], md5=hashlib.md5(b"onetwo").hexdigest()).status == 200


def test_a_cancelled_upload_leaves_nothing_behind(api: Api) -> None:
    upload = begin(api)
    part = added(api, upload, CONTENT[:100])
    assert name_of(part) in stored()
    first, again = (api.ask("POST", f"/v1/uploads/{upload}/cancel") for _ in range(2))
    assert (first.status, first.json["status"], first.json["file"]) == (200, "cancelled", None)
    assert again.json == first.json
    assert name_of(part) not in stored()
    assert complete(api, upload, [part]).error["code"] == "upload_not_pending"


def test_an_upload_shows_its_parts_to_resume_by(api: Api) -> None:
    upload = begin(api)
    part = added(api, upload, CONTENT[:100])
    shown = api.ask("GET", f"/v1/uploads/{upload}").json
    assert shown["status"] == "pending"
    assert [(one["id"], one["bytes"], one["sha256"]) for one in shown["parts"]] == [
        (part, 100, hashlib.sha256(CONTENT[:100]).hexdigest())
    ]
    missing = api.ask("GET", f"/v1/uploads/upload_{'0' * 32}")
    assert (missing.status, missing.error["param"]) == (404, "upload_id")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"bytes": 0}, "bytes"),
        ({"bytes": -5}, "bytes"),
        ({"bytes": 2**40}, "bytes"),
        ({"bytes": "many"}, "bytes"),
        ({"purpose": "batch_output"}, "purpose"),
        ({"purpose": ""}, "purpose"),
        ({"filename": None}, "filename"),
        ({"expires_after": {"anchor": "created_at", "seconds": 5}}, "expires_after.seconds"),
    ],
)
def test_a_wrong_creation_names_its_field(api: Api, fields: dict[str, object], param: str) -> None:
    body = {"bytes": 5, "filename": "a", "mime_type": "txt", "purpose": "batch", **fields}
    answer = api.ask("POST", "/v1/uploads", body)
    assert (answer.status, answer.error["param"]) == (400, param)


def test_the_file_lives_as_long_as_was_asked_for(api: Api) -> None:
    upload = begin(api, 2, expires_after={"anchor": "created_at", "seconds": 7200})
    file = complete(api, upload, [added(api, upload, b"{}")]).json["file"]
    assert file["expires_at"] == file["created_at"] + 7200


def test_a_creation_that_is_sent_twice_makes_one_upload(api: Api) -> None:
    body = {"bytes": 5, "filename": "a", "mime_type": "txt", "purpose": "batch"}
    first, again = (
        api.ask("POST", "/v1/uploads", body, headers={"idempotency-key": "k"}) for _ in range(2)
    )
    assert first.json == again.json


def test_more_bytes_than_declared_are_refused_and_removed(api: Api) -> None:
    upload = begin(api, 10)
    too_much = add(api, upload, bytes(11))
    assert (too_much.status, too_much.error["code"]) == (400, "upload_too_large")
    added(api, upload, b"123456")
    before = stored()
    too_much = add(api, upload, b"12345")
    assert (too_much.status, too_much.error["code"]) == (400, "upload_too_large")
    assert stored() == before
    added(api, upload, b"1234")


def test_a_part_whose_answer_was_lost_can_be_sent_again(api: Api) -> None:
    upload = begin(api, 10)
    first = added(api, upload, b"12345")
    again = [added(api, upload, b"12345") for _ in range(uploads.MOST_REPEATS)]
    last = added(api, upload, b"54321")
    refused = add(api, upload, b"12345")
    assert (refused.status, refused.error["code"]) == (400, "upload_too_large")
    assert complete(api, upload, [again[-1], last]).status == 200
    assert not stored() & {name_of(id) for id in (first, *again, last)}


def test_a_part_over_the_limit_is_refused(api: Api) -> None:
    upload = begin(api, 80 * MiB)
    with pytest.raises(openai.BadRequestError) as caught:
        api.client.uploads.parts.create(upload, data=io.BytesIO(bytes(64 * MiB + 1)))
    assert caught.value.code == "part_too_large"
    assert api.client.uploads.parts.create(upload, data=bytes(64 * MiB)).upload_id == upload


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (("file", "a", b"x"), "Missing required parameter: `data`"),
        (("data", "a", b""), "`data` is empty. Send the file's next bytes."),
    ],
)
def test_a_form_without_data_is_refused(
    api: Api, part: tuple[str, str | None, bytes], said: str
) -> None:
    upload = begin(api)
    kind, body = multipart(part)
    answer = api.ask("POST", f"/v1/uploads/{upload}/parts", body, headers={"content-type": kind})
    assert (answer.status, answer.error["param"]) == (400, "data")
    assert said in answer.error["message"]


def test_an_upload_has_a_bounded_number_of_parts(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MOST_PARTS", 2)
    upload = begin(api, 10)
    added(api, upload, b"1")
    added(api, upload, b"2")
    answer = add(api, upload, b"3")
    assert answer.status == 400
    assert "2 parts" in answer.error["message"]


def test_an_upload_that_is_over_is_expired_before_the_sweep(api: Api) -> None:
    upload = begin(api)
    part = added(api, upload, CONTENT)
    with db.transaction() as session:
        session.execute(
            text("UPDATE uploads SET expires_at = now() WHERE id = :id"),
            {"id": ids.parse("upload", upload)},
        )
    assert api.ask("GET", f"/v1/uploads/{upload}").json["status"] == "expired"
    for refused in (add(api, upload, b"x"), complete(api, upload, [part])):
        assert (refused.status, refused.error["code"]) == (400, "upload_not_pending")


def test_declared_bytes_count_until_the_upload_ends(
    api: Api, configure: Callable[..., None]
) -> None:
    configure(quota_storage_bytes=len(CONTENT), quota_files=1, quota_pending_uploads=1)
    upload = begin(api)
    limits = api.ask("GET", "/v1/limits").json
    assert (limits["storage_bytes"]["used"], limits["files"]["used"]) == (len(CONTENT), 1)
    assert limits["pending_uploads"] == {"used": 1, "limit": 1, "free": 0}
    body = {"bytes": 1, "filename": "a", "mime_type": "txt", "purpose": "batch"}
    refused = api.ask("POST", "/v1/uploads", body)
    assert (refused.status, refused.error["code"]) == (429, "pending_uploads_limit")
    # The file takes the place of its upload.
    assert complete(api, upload, [added(api, upload, CONTENT)]).status == 200
    limits = api.ask("GET", "/v1/limits").json
    assert (limits["storage_bytes"]["used"], limits["files"]["used"]) == (len(CONTENT), 1)
    assert limits["pending_uploads"]["used"] == 0


def test_while_an_upload_is_joined_other_changes_are_told_to_wait(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin(api, 6)
    parts = [added(api, upload, piece) for piece in (b"one", b"two")]
    answers: list[Answer] = []
    chunks = storage.chunks

    def busy(key: str, *bounds: int) -> object:
        if not answers:
            answers.append(complete(api, upload, parts))
            answers.append(api.ask("POST", f"/v1/uploads/{upload}/cancel"))
            answers.append(add(api, upload, b"one"))
        return chunks(key, *bounds)

    monkeypatch.setattr(storage, "chunks", busy)
    assert complete(api, upload, parts).status == 200
    assert [(answer.status, answer.error["code"]) for answer in answers] == [
        (409, "upload_busy")
    ] * 3
    assert all(answer.headers["x-should-retry"] == "true" for answer in answers)


def test_a_lost_part_is_an_error_of_the_storage(api: Api) -> None:
    upload = begin(api, 3)
    part = added(api, upload, b"one")
    os.unlink(storage.folder() / "parts" / name_of(part))
    assert complete(api, upload, [part]).status == 503
    assert api.ask("GET", f"/v1/uploads/{upload}").json["status"] == "pending"


def test_the_python_client_sends_a_large_input_in_parts_once_for_a_key(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_upload, "PART", 500)
    requests = [{"messages": [{"role": "user", "content": f"Say {n}."}]} for n in range(20)]
    with XALEN(base_url=f"http://127.0.0.1:{api.port}/v1", api_key=api.key) as client:
        first, again = (
            client.batches.submit(requests, model=factories.CHAT_MODEL, idempotency_key="night-1")
            for _ in range(2)
        )
        assert first.id == again.id
        content = client.files.content(first.input_file_id).content
    assert len(content) > 5 * client_upload.PART
    assert [json.loads(line)["custom_id"] for line in content.splitlines()] == [
        f"request-{n}" for n in range(1, 21)
    ]
    assert len(api.ask("GET", "/v1/files").json["data"]) == 1
