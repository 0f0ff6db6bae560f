"""The same Idempotency-Key creates one object, however often and at once it is sent."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import delete
from sqlalchemy.orm import Session

from tests import factories
from tests.integration.conftest import Answer, Api, multipart, new_key
from xalen_batch import db, ids, storage
from xalen_batch.accounts.accounts import Caller
from xalen_batch.api import idempotency
from xalen_batch.models import IdempotencyKey

KEY = {"idempotency-key": "nightly-1"}
REQUEST = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}


def upload(
    api: Api, content: bytes = b"{}\n", filename: str = "a", headers: dict[str, str] = KEY
) -> Answer:
    kind, body = multipart(("file", filename, content), ("purpose", None, b"batch"))
    return api.ask("POST", "/v1/files", body, headers={"content-type": kind, **headers})


def inputs() -> set[str]:
    return {key for key, _ in storage.listing("input")}


def test_a_batch_is_created_once(api: Api) -> None:
    request = {"input_file_id": api.upload()["id"], **REQUEST}
    first, again = (api.ask("POST", "/v1/batches", request, headers=KEY) for _ in range(2))
    assert first.status == again.status == 200
    assert again.body == first.body
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    # Sorted otherwise and with a default spelt out, it is the same request.
    same = api.ask("POST", "/v1/batches", {**REQUEST, "metadata": None, **request}, headers=KEY)
    assert same.body == first.body
    assert len(api.ask("GET", "/v1/batches").json["data"]) == 1


def test_a_file_is_created_once_and_its_copy_is_not_kept(api: Api) -> None:
    before = inputs()
    first, again = upload(api), upload(api)
    assert again.body == first.body
    assert again.headers["idempotent-replayed"] == "true"
    file_id = ids.parse("file", first.json["id"])
    assert file_id is not None
    assert inputs() - before == {storage.key(file_id)}


def test_the_same_key_with_another_request_is_400(api: Api) -> None:
    before = inputs()
    file = upload(api).json["id"]
    request = {"input_file_id": file, **REQUEST}
    for answer in (
        upload(api, b"other"),
        upload(api, filename="b"),
        api.ask("POST", "/v1/batches", request, headers=KEY),
    ):
        assert (answer.status, answer.error["code"]) == (400, "idempotency_key_reused")
    assert len(inputs() - before) == 1
    assert api.ask("GET", "/v1/batches").json["data"] == []


def test_a_request_that_failed_leaves_its_key_free(api: Api) -> None:
    assert (
        api.ask(
            "POST", "/v1/batches", {"input_file_id": "file-none", **REQUEST}, headers=KEY
        ).status
        == 400
    )
    answer = api.ask(
        "POST", "/v1/batches", {"input_file_id": api.upload()["id"], **REQUEST}, headers=KEY
    )
    assert answer.status == 200
    assert "idempotent-replayed" not in answer.headers


def test_a_key_belongs_to_its_account(api: Api) -> None:
    other = Api(api.port, new_key())
    assert upload(api).json["id"] != upload(other).json["id"]


@pytest.mark.parametrize("key", ["", "k" * 256, "a\tb"])
def test_a_key_that_is_none_is_400(api: Api, key: str) -> None:
    answer = api.ask(
        "POST",
        "/v1/batches",
        {"input_file_id": api.upload()["id"], **REQUEST},
        headers={"idempotency-key": key},
    )
    assert (answer.status, answer.error["param"]) == (400, "Idempotency-Key")


@pytest.mark.parametrize("kind", ["batch", "file"])
def test_many_at_once_create_one(api: Api, kind: str) -> None:
    request: dict[str, Any] = {"input_file_id": api.upload()["id"], **REQUEST}

    def send(_: int) -> Answer:
        return (
            upload(api, b"x" * 100_000)
            if kind == "file"
            else api.ask("POST", "/v1/batches", request, headers=KEY)
        )

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(send, range(24)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert len(api.ask("GET", f"/v1/{'files' if kind == 'file' else 'batches'}").json["data"]) == (
        2 if kind == "file" else 1
    )


def test_a_key_that_the_sweep_deletes_between_the_conflict_and_the_look_is_claimed_again(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once(session: Session, caller: Caller, answer: bytes) -> idempotency.IdempotentAnswer:
        return idempotency.once(
            session, caller, "nightly-1", route="POST /", fingerprint=b"", create=lambda: answer
        )

    with db.transaction() as session:
        caller = factories.caller(session)
        once(session, caller, b"first")
    claim, claims = idempotency._claim, []

    def then_swept(*arguments: Any) -> bool:
        claims.append(claim(*arguments))
        if len(claims) == 1:
            with db.transaction() as sweep:
                sweep.execute(delete(IdempotencyKey))
        return claims[-1]

    monkeypatch.setattr(idempotency, "_claim", then_swept)
    with db.transaction() as session:
        assert once(session, caller, b"second") == idempotency.IdempotentAnswer(
            b"second", is_replay=False
        )
    assert claims == [False, True]
    with db.transaction() as session:
        assert once(session, caller, b"third") == idempotency.IdempotentAnswer(
            b"second", is_replay=True
        )
