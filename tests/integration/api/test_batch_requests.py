"""A batch of the requests in the body: the server makes its input file."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests import factories
from tests.integration.conftest import Answer, Api
from xalen_batch import ids, storage
from xalen_batch.batches import batches
from xalen_batch.endpoints.names import CHAT
from xalen_batch.errors import InvalidRequest
from xalen_batch.pipeline import validate

LINES = [factories.chat_line("a"), factories.chat_line("b", "Überall ☕\n")]


def create(
    api: Api, requests: Any, *, headers: dict[str, str] | None = None, **more: Any
) -> Answer:
    body = {"requests": requests, "endpoint": CHAT, "completion_window": "24h", **more}
    return api.ask("POST", "/v1/batches", body, headers=headers)


def stored() -> set[str]:
    return {path.name for path in (storage.folder() / "input").glob("*")}


def content(api: Api, file_id: str) -> list[Any]:
    raw = api.ask("GET", f"/v1/files/{file_id}/content").body
    return [json.loads(line) for line in raw.decode().splitlines()]


def test_the_requests_are_the_lines_of_an_input_file(api: Api) -> None:
    answer = create(api, LINES, metadata={"team": "search"})
    assert (answer.status, answer.json["status"]) == (200, "validating")
    file_id = answer.json["input_file_id"]
    assert content(api, file_id) == LINES
    file = api.ask("GET", f"/v1/files/{file_id}").json
    assert (file["purpose"], file["filename"], file["status"]) == (
        "batch",
        "requests.jsonl",
        "processed",
    )
    assert file["expires_at"] is not None


def test_a_request_is_kept_as_it_was_sent(api: Api) -> None:
    """Numbers that no float holds, and blanks with line breaks between tokens."""
    odd = '{"custom_id":\r\n "a", "n": 123456789012345678901234567890, "f": 1.10, "s": "x\\ny"}'
    body = f'{{"endpoint": "{CHAT}", "completion_window": "24h", "requests": [{odd}\n, 5 ]}}'
    answer = api.ask(
        "POST", "/v1/batches", body.encode(), headers={"content-type": "application/json"}
    )
    assert answer.status == 200, answer.body
    raw = api.ask("GET", f"/v1/files/{answer.json['input_file_id']}/content").body
    first, second = raw.split(b"\n")[:2]
    assert first == odd.replace("\r", " ").replace("\n", " ").encode()
    assert second == b"5"


def test_errors_name_the_place_in_the_list(api: Api) -> None:
    bad = factories.chat_line("c") | {"method": "GET"}
    batch_id = create(api, [*LINES, bad]).json["id"]
    id = ids.parse("batch", batch_id)
    assert id is not None
    validate.run(id)
    batch = api.ask("GET", f"/v1/batches/{batch_id}").json
    assert batch["status"] == "failed"
    assert [(error["line"], error["param"]) for error in batch["errors"]["data"]] == [(3, "method")]


def test_a_large_body_is_taken(api: Api) -> None:
    requests = [factories.chat_line(str(n), "word " * 2_000) for n in range(1_000)]
    answer = create(api, requests)
    assert answer.status == 200, answer.body
    assert api.ask("GET", f"/v1/files/{answer.json['input_file_id']}").json["bytes"] > 10_000_000


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"requests": []}, "requests"),
        ({"requests": {}}, "requests"),
        ({"requests": "a"}, "requests"),
        ({"requests": None}, "input_file_id"),
        ({"input_file_id": f"file-{'0' * 32}"}, "requests"),
    ],
)
def test_a_wrong_input_is_named(api: Api, more: dict[str, Any], param: str) -> None:
    before = stored()
    answer = api.ask(
        "POST",
        "/v1/batches",
        {"requests": LINES, "endpoint": CHAT, "completion_window": "24h", **more},
    )
    assert (answer.status, answer.error["param"]) == (400, param)
    assert stored() == before


def test_a_batch_needs_an_input(api: Api) -> None:
    answer = api.ask("POST", "/v1/batches", {"endpoint": CHAT, "completion_window": "24h"})
    assert (answer.status, answer.error["param"], answer.error["code"]) == (
        400,
        "input_file_id",
        "missing_required_parameter",
    )


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"requests": [', 400, "invalid_json"),
        (b'["requests"]', 400, "invalid_json"),
        (b'{"requests": [], "pad": "' + b"x" * 2_000_000 + b'"}', 413, "request_too_large"),
        (b'{"pad": "' + b"x" * 2_000_000 + b'"}', 413, "request_too_large"),
    ],
)
def test_a_broken_or_large_body_is_refused(api: Api, body: bytes, status: int, code: str) -> None:
    answer = api.ask("POST", "/v1/batches", body, headers={"content-type": "application/json"})
    assert (answer.status, answer.error["code"]) == (status, code)


def test_the_same_key_makes_one_batch_and_one_file(api: Api) -> None:
    first = create(api, LINES, headers={"idempotency-key": "k"})
    before = stored()
    again = create(api, LINES, headers={"idempotency-key": "k"})
    assert again.json == first.json
    assert again.headers["idempotent-replayed"] == "true"
    assert stored() == before
    other = create(api, LINES[:1], headers={"idempotency-key": "k"})
    assert (other.status, other.error["code"]) == (400, "idempotency_key_reused")


def test_a_creation_that_fails_leaves_nothing_behind(
    api: Api, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stored()
    configure(quota_open_batches=0)
    assert create(api, LINES).error["code"] == "open_batches_limit"
    configure(quota_open_batches="none", quota_storage_bytes=1)
    assert create(api, LINES).error["code"] == "storage_bytes_limit"
    configure(quota_storage_bytes="none")

    def refuse(*_: object, **__: object) -> None:
        raise InvalidRequest("no", param="endpoint")

    with monkeypatch.context() as broken:
        broken.setattr(batches, "create", refuse)
        assert create(api, LINES).status == 400
    assert stored() == before
    assert api.ask("GET", "/v1/files").json["data"] == []
