"""The requests of an OpenAI client that need no worker, with every answer checked against the
client's own types.
"""

from typing import Any

import openai
import pytest
from openai.types import Batch, FileObject, Model
from pydantic import BaseModel

from tests import factories
from tests.integration.conftest import Api, new_key

LINES = factories.jsonl([factories.chat_line("a"), factories.chat_line("b")])
EXTENSIONS: dict[type[BaseModel], set[str]] = {
    Batch: {
        "schedule_id",
        "run_id",
        "execution_window",
        "on_invalid",
        "retry_of",
        "retry_codes",
        "waiting",
        "outlook",
    }
}


def check(kind: type[BaseModel], answer: dict[str, Any]) -> None:
    """Every field of the client's type is there, with exactly its type, and of others only those of
    our extensions.
    """
    assert set(answer) - EXTENSIONS.get(kind, set()) == set(kind.model_fields)
    kind.model_validate(answer, strict=True)


def test_file_is_created_listed_read_and_deleted(api: Api) -> None:
    client = api.client
    file = client.files.create(file=("tickets.jsonl", LINES), purpose="batch")
    assert (file.filename, file.bytes, file.purpose, file.status) == (
        "tickets.jsonl",
        len(LINES),
        "batch",
        "processed",
    )
    assert file.expires_at == file.created_at + 30 * 86_400
    assert file._request_id is not None
    assert client.files.retrieve(file.id) == file
    assert [found.id for found in client.files.list()] == [file.id]
    assert client.files.content(file.id).read() == LINES
    assert client.files.wait_for_processing(file.id).id == file.id
    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (file.id, True, "file")
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


@pytest.mark.parametrize(
    ("spelling", "endpoint"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v2/rerank", "/v1/rerank"),
        ("/rerank", "/v1/rerank"),
    ],
)
def test_the_batch_shows_the_canonical_endpoint_of_a_spelling(
    api: Api, spelling: str, endpoint: str
) -> None:
    file = api.upload(LINES)["id"]
    batch = api.ask(
        "POST",
        "/v1/batches",
        {"input_file_id": file, "endpoint": spelling, "completion_window": "24h"},
    )
    assert (batch.status, batch.json["endpoint"]) == (200, endpoint)
    estimate = api.ask(
        "POST", "/v1/batches/estimate", {"input_file_id": file, "endpoint": spelling}
    )
    assert (estimate.status, estimate.json["endpoint"]) == (200, endpoint)
    schedule = {"name": "nightly", "cron": "@daily", "endpoint": spelling, "inbox": {}}
    assert api.ask("POST", "/v1/schedules", schedule).json["endpoint"] == endpoint


def test_batch_is_created_listed_and_cancelled(api: Api) -> None:
    client = api.client
    file = client.files.create(file=LINES, purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"team": "support"},
    )
    assert (batch.status, batch.metadata, batch.output_file_id) == (
        "validating",
        {"team": "support"},
        None,
    )
    assert batch.expires_at == batch.created_at + 86_400
    assert client.batches.retrieve(batch.id) == batch
    assert [found.id for found in client.batches.list()] == [batch.id]
    cancelled = client.batches.cancel(batch.id)
    assert cancelled.status == "cancelling"
    assert client.batches.cancel(batch.id) == cancelled


def test_models_are_the_catalog(api: Api) -> None:
    client = api.client
    assert [model.id for model in client.models.list()] == [
        "mistral-small-3-1",
        "bge-reranker-v2",
        "bge-m3",
    ]
    assert client.models.retrieve("bge-reranker-v2").owned_by == "BAAI"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("gpt-9")


def test_answers_have_the_fields_of_the_clients_types(api: Api) -> None:
    file = api.upload(LINES)
    check(FileObject, file)
    request = {
        "input_file_id": file["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    batch = api.ask("POST", "/v1/batches", request).json
    check(Batch, batch)
    assert batch["metadata"] == {}
    assert batch["errors"] is None
    assert set(batch["usage"]) == {
        "input_tokens",
        "input_tokens_details",
        "output_tokens",
        "output_tokens_details",
        "total_tokens",
    }
    for path in (f"/v1/batches/{batch['id']}", "/v1/batches"):
        answer = api.ask("GET", path).json
        check(Batch, answer["data"][0] if path == "/v1/batches" else answer)
    model = api.ask("GET", "/v1/models/bge-reranker-v2").json
    Model.model_validate(model, strict=True)
    assert set(model) == {"id", "object", "created", "owned_by"}


def test_null_stands_for_every_optional_and_unknown_fields_are_ignored(api: Api) -> None:
    request = {
        "input_file_id": api.upload(LINES)["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "1h",
        "metadata": None,
        "output_expires_after": None,
        "target_model_names": "a,b",
        "custom_llm_provider": "openai",
    }
    answer = api.ask("POST", "/v1/batches", request)
    assert answer.status == 200
    assert answer.json["expires_at"] == answer.json["created_at"] + 3_600


def test_paging_goes_through_every_object_once(api: Api) -> None:
    client = api.client
    made = [client.files.create(file=b"{}\n", purpose="batch").id for _ in range(5)]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == made
    assert [file.id for file in client.files.list(limit=2)] == made[::-1]
    batches = [
        client.batches.create(
            input_file_id=made[0], endpoint="/v1/rerank", completion_window="24h"
        ).id  # type: ignore[arg-type]
        for _ in range(3)
    ]
    assert [batch.id for batch in client.batches.list(limit=2)] == batches[::-1]
    page = api.ask("GET", "/v1/files?limit=5").json
    assert (page["first_id"], page["last_id"], page["has_more"], page["object"]) == (
        made[-1],
        made[0],
        False,
        "list",
    )
    empty = api.ask("GET", "/v1/files?purpose=vision").json
    assert empty == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


def test_paging_goes_on_behind_a_deleted_file(api: Api) -> None:
    first, last = (api.upload()["id"] for _ in range(2))
    api.ask("DELETE", f"/v1/files/{last}")
    assert [file["id"] for file in api.ask("GET", f"/v1/files?after={last}").json["data"]] == [
        first
    ]


@pytest.mark.parametrize("options", [{}, {"livemode": True}])
def test_another_account_and_the_other_mode_see_nothing(api: Api, options: dict[str, Any]) -> None:
    file = api.upload(LINES)["id"]
    request = {
        "input_file_id": file,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    batch = api.ask("POST", "/v1/batches", request).json["id"]
    stranger = Api(api.port, new_key(**options))
    for method, path in [
        ("GET", f"/v1/files/{file}"),
        ("GET", f"/v1/files/{file}/content"),
        ("DELETE", f"/v1/files/{file}"),
        ("GET", f"/v1/batches/{batch}"),
        ("POST", f"/v1/batches/{batch}/cancel"),
        ("GET", f"/v1/batches/{batch}/output"),
        ("GET", f"/v1/batches/{batch}/errors"),
    ]:
        answer = stranger.ask(method, path)
        assert (answer.status, answer.error["type"]) == (404, "not_found_error"), path
    assert (
        stranger.ask("GET", "/v1/files").json["data"]
        == stranger.ask("GET", "/v1/batches").json["data"]
        == []
    )
    refused = stranger.ask("POST", "/v1/batches", request)
    assert (refused.status, refused.error["param"]) == (400, "input_file_id")
