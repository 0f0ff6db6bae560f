"""Downloads over HTTP: ranges, preconditions, and files that go or shrink meanwhile."""

import hashlib
import http.client
from base64 import b64encode
from typing import Any

import pytest
from sqlalchemy import text

from tests.billing import REFUSED, Ran, ended
from tests.conftest import as_owner
from tests.integration.conftest import Api, new_key
from tests.waiting import PATIENCE
from xalen_batch import db, ids, storage
from xalen_batch.accounts import accounts
from xalen_batch.backends.contract import Answered
from xalen_batch.config import MiB
from xalen_batch.endpoints.usage import Usage
from xalen_batch.pipeline import seal
from xalen_batch.storage import frames

CONTENT = bytes(range(256)) * 12 * 1024
SHA256 = hashlib.sha256(CONTENT)
DIGEST = f"sha-256=:{b64encode(SHA256.digest()).decode()}:"
TAG = f'"{SHA256.hexdigest()}"'


@pytest.fixture
def file(api: Api) -> str:
    """The id of an upload of CONTENT, which is read in three chunks."""
    id: str = api.upload(CONTENT)["id"]
    return id


def content(file: str) -> str:
    return f"/v1/files/{file}/content"


def test_a_download_in_parts_is_the_upload(api: Api, file: str) -> None:
    whole = api.ask("GET", content(file))
    assert (whole.status, whole.body, whole.headers["etag"]) == (200, CONTENT, TAG)
    assert whole.headers["repr-digest"] == whole.headers["content-digest"] == DIGEST
    found = b""
    for start, asked in ((0, "0-9"), (10, f"10-{2 * MiB}"), (2 * MiB + 1, f"{2 * MiB + 1}-")):
        part = api.ask("GET", content(file), headers={"range": f"bytes={asked}", "if-range": TAG})
        end = start + len(part.body) - 1
        assert part.status == 206
        assert part.headers["content-range"] == f"bytes {start}-{end}/{len(CONTENT)}"
        assert part.headers["content-length"] == str(len(part.body))
        found += part.body
    assert found == CONTENT
    last = api.ask("GET", content(file), headers={"range": "bytes=-3"})
    assert (last.status, last.body) == (206, CONTENT[-3:])


def test_a_range_behind_the_end_is_416_in_the_envelope(api: Api, file: str) -> None:
    found = api.ask("GET", content(file), headers={"range": f"bytes={len(CONTENT)}-"})
    assert (found.status, found.error["code"]) == (416, "range_not_satisfiable")
    assert (found.error["type"], found.error["param"]) == ("invalid_request_error", "Range")
    assert found.headers["content-range"] == f"bytes */{len(CONTENT)}"


def test_preconditions(api: Api, file: str) -> None:
    for method in ("GET", "HEAD"):
        same = api.ask(method, content(file), headers={"if-none-match": TAG})
        assert (same.status, same.headers["etag"], same.body) == (304, TAG, b"")
        other = api.ask(method, content(file), headers={"if-none-match": '"x"'})
        assert (other.status, other.headers["content-length"]) == (200, str(len(CONTENT)))
    refused = api.ask("GET", content(file), headers={"if-match": '"x"'})
    assert (refused.status, refused.error["code"]) == (412, "precondition_failed")


def test_a_connection_stays_open_behind_each_kind_of_answer(api: Api, file: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=PATIENCE)
    fields: list[tuple[int, dict[str, str]]] = [
        (304, {"if-none-match": "*"}),
        (206, {"range": "bytes=5-7"}),
        (416, {"range": "bytes=-0"}),
        (412, {"if-match": '"x"'}),
        (200, {"range": "bytes=0-1,3-4"}),
    ]
    for method in ("HEAD", "GET"):
        for status, asked in fields:
            connection.request(
                method, content(file), headers={"authorization": f"Bearer {api.key}", **asked}
            )
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == (200 if method == "HEAD" and "range" in asked else status)
            assert len(body) == int(answer.headers.get("content-length", 0)) * (method == "GET")
    connection.close()


def test_other_keys_and_deleted_files_get_404_whatever_they_know(api: Api, file: str) -> None:
    other = Api(api.port, new_key())
    asked: list[dict[str, str]] = [
        {"if-none-match": "*"},
        {"if-none-match": TAG},
        {"if-match": TAG},
        {"range": "bytes=0-1", "if-range": TAG},
        {"range": "bytes=9999999-"},
    ]
    unknown = f"/v1/files/{ids.render('file', ids.new())}/content"
    for fields in asked:
        found = other.ask("GET", content(file), headers=fields)
        assert (found.status, found.error["code"]) == (404, "not_found")
        assert api.ask("GET", unknown, headers=fields).status == 404
    assert api.ask("DELETE", f"/v1/files/{file}").status == 200
    for fields in asked:
        assert api.ask("GET", content(file), headers=fields).status == 404


def test_an_object_that_is_shorter_than_its_row_breaks_off(api: Api, file: str) -> None:
    storage.write(_key(file), [CONTENT[: MiB + 10]])
    with pytest.raises(http.client.IncompleteRead) as raised:
        api.ask("GET", content(file))
    # The second chunk is not all there.
    assert raised.value.partial == CONTENT[:MiB]
    # Nothing of this range is there, so an error can still be said.
    found = api.ask("GET", content(file), headers={"range": f"bytes={2 * MiB}-"})
    assert (found.status, found.error["code"]) == (503, "service_unavailable")


def test_an_object_that_is_gone_is_an_error_for_get_and_head(api: Api, file: str) -> None:
    storage.delete(_key(file))
    for fields in ({}, {"range": "bytes=5-9"}):
        found = api.ask("GET", content(file), headers=fields)
        assert (found.status, found.error["code"]) == (503, "service_unavailable")
        assert not {"etag", "content-range", "repr-digest"} & set(found.headers)
    head = api.ask("HEAD", content(file))
    assert (head.status, "etag" in head.headers) == (503, False)
    # A client that has the bytes may keep them.
    assert api.ask("HEAD", content(file), headers={"if-none-match": TAG}).status == 304


def test_head_of_a_lost_sealed_file_says_what_get_says(api: Api) -> None:
    with db.transaction() as session:
        caller = accounts.authenticate(session, api.key)
    batch = ended([Ran(Usage(7, 9))] * 3, caller)
    assert batch.output_file_id is not None
    path = content(ids.render("file", batch.output_file_id))
    seal.run()
    sealed = api.ask("GET", path)
    storage.delete(storage.output_key(batch.output_file_id))
    for method in ("GET", "HEAD"):
        # Its rows stand in.
        found = api.ask(method, path)
        assert (found.status, found.headers["etag"]) == (200, sealed.headers["etag"])
    with as_owner() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(text("DELETE FROM results"))
    assert [api.ask(method, path).status for method in ("GET", "HEAD")] == [503, 503]


def test_a_sealed_file_is_read_in_parts_and_compressed(api: Api) -> None:
    with db.transaction() as session:
        caller = accounts.authenticate(session, api.key)
    answer = Answered(200, b'{"text":"' + b"word " * 50_000 + b'"}', Usage(7, 9))
    batch = ended([Ran(answer)] * 12, caller)
    assert batch.output_file_id is not None
    path = content(ids.render("file", batch.output_file_id))
    rendered = api.ask("GET", path)
    assert (rendered.status, rendered.headers["accept-ranges"]) == (200, "none")
    assert len(rendered.body) > 2 * frames.FRAME_BYTES
    seal.run()
    sealed = api.ask("GET", path)
    digest = hashlib.sha256(rendered.body)
    assert (sealed.body, sealed.headers["etag"]) == (rendered.body, f'"{digest.hexdigest()}"')
    # Across the border of two frames.
    start, end = frames.FRAME_BYTES - 5, frames.FRAME_BYTES + 5
    part = api.ask("GET", path, headers={"range": f"bytes={start}-{end - 1}"})
    assert (part.status, part.body) == (206, rendered.body[start:end])
    packed = api.ask("GET", path, headers={"accept-encoding": "zstd"})
    assert packed.headers["content-encoding"] == "zstd"
    assert len(packed.body) == int(packed.headers["content-length"]) < len(rendered.body) // 10
    assert frames.zstd.decompress(packed.body) == rendered.body
    of_batch = api.ask("GET", f"/v1/batches/{ids.render('batch', batch.id)}/output")
    assert (of_batch.body, of_batch.headers["etag"]) == (sealed.body, sealed.headers["etag"])


def test_openais_client_reads_wholes_and_parts(api: Api, file: str) -> None:
    assert api.client.files.content(file).read() == CONTENT
    part: Any = api.client.files.content(file, extra_headers={"range": "bytes=10-19"})
    assert part.read() == CONTENT[10:20]


def _key(file: str) -> str:
    id = ids.parse("file", file)
    assert id is not None
    return storage.key(id)


def test_an_offset_leaves_out_lines(api: Api) -> None:
    with db.transaction() as session:
        caller = accounts.authenticate(session, api.key)
    answer = Answered(200, b'{"text":"' + b"word " * 50_000 + b'"}', Usage(7, 9))
    batch = ended([*[Ran(answer)] * 12, Ran(REFUSED)], caller)
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    output, errors = (
        content(ids.render("file", id)) for id in (batch.output_file_id, batch.error_file_id)
    )
    lines = api.ask("GET", output).body.splitlines(keepends=True)
    assert len(lines) == 12
    for _ in ("from rows", "sealed"):
        for offset in (0, 1, 5, 11, 12, 100):
            found = api.ask("GET", f"{output}?offset={offset}")
            assert found.body == b"".join(lines[offset:])
            assert (found.headers["x-incomplete"], found.headers["x-last-line"]) == ("false", "12")
            assert "etag" not in found.headers
        assert api.ask("GET", f"{errors}?offset=0").headers["x-last-line"] == "1"
        seal.run()
    upload = content(api.upload(b"a\nb\nc")["id"])
    found = api.ask("GET", f"{upload}?offset=2")
    assert (found.body, "x-last-line" in found.headers) == (b"c", False)
    assert api.ask("GET", f"{upload}?offset=-1").error["param"] == "offset"
