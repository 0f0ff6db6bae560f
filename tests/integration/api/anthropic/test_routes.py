"""Message batches through the anthropic package, unmodified: `base_url` and `api_key` alone."""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

import anthropic
import pytest
from anthropic.types.messages import MessageBatch
from sqlalchemy import select

from tests import factories
from tests.factories import CHAT_MODEL
from tests.integration import engines
from tests.integration.conftest import Api, new_key
from xalen_batch import db, ids, storage
from xalen_batch.models import Batch, File
from xalen_batch.pipeline import finalize, seal, validate
from xalen_batch.validation import apart
from xalen_batch.worker.engine import Engine

pytestmark = pytest.mark.usefixtures("database")
engine = engines.engine

PATH = "/v1/messages/batches"
PARAMS: Any = {
    "model": CHAT_MODEL,
    "max_tokens": 32,
    "system": "Be brief.",
    "messages": [{"role": "user", "content": "Where is my parcel?"}],
}
TOOL = {"name": "look_up", "input_schema": {"type": "object", "properties": {}}}


def sdk(api: Api, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=f"http://127.0.0.1:{api.port}",
        api_key=options.pop("api_key", api.key),
        max_retries=0,
        **options,
    )


def requests(*params: Any) -> Any:
    return [{"custom_id": f"request-{n}", "params": each} for n, each in enumerate(params)]


def row(batch: MessageBatch) -> UUID:
    found = ids.parse("msgbatch", batch.id)
    assert found is not None
    return found


def finish(engine: Engine, batch: MessageBatch) -> Batch:
    validate.run(row(batch))
    return engines.run_to_end(engine, row(batch))


def results_of(client: anthropic.Anthropic, batch: MessageBatch) -> dict[str, Any]:
    found = [each.to_dict() for each in client.messages.batches.results(batch.id)]
    by_id = {each["custom_id"]: each["result"] for each in found}
    assert len(by_id) == len(found)
    return by_id


def test_a_batch_from_its_creation_to_its_deletion(api: Api, engine: Engine) -> None:
    client = sdk(api)
    forced = PARAMS | {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "look_up"}}
    params = [
        PARAMS,
        PARAMS | {"max_tokens": 1},
        forced,
        PARAMS | {"max_tokens": "many"},
        PARAMS | {"model": "claude-none"},
    ]
    batch = client.messages.batches.create(requests=requests(*params))
    assert batch.processing_status == "in_progress"
    assert batch.request_counts.to_dict() == counts(processing=5)
    assert batch.results_url is None
    with pytest.raises(anthropic.AnthropicError, match="results_url"):
        client.messages.batches.results(batch.id)
    assert api.ask("GET", f"{PATH}/{batch.id}/results").status == 400

    finish(engine, batch)
    ended = client.messages.batches.retrieve(batch.id)
    assert ended.processing_status == "ended"
    assert ended.ended_at is not None
    assert ended.request_counts.to_dict() == counts(succeeded=3, errored=2)

    found = results_of(client, batch)
    message = found["request-0"]["message"]
    assert message["content"][0]["text"]
    assert message["usage"]["service_tier"] == "batch"
    assert found["request-1"]["message"]["stop_reason"] == "max_tokens"
    assert found["request-1"]["message"]["usage"]["output_tokens"] == 1
    assert found["request-2"]["message"]["stop_reason"] == "tool_use"
    assert found["request-2"]["message"]["content"][-1]["name"] == "look_up"
    for name, word in (("request-3", "params.max_tokens: "), ("request-4", "params.model: ")):
        error = found[name]["error"]["error"]
        assert error["type"] == "invalid_request_error"
        assert error["message"].startswith(word)

    billed(api, batch, found)
    assert client.messages.batches.delete(batch.id).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve(batch.id)
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.delete(batch.id)
    assert list(client.messages.batches.list()) == []
    assert list(api.client.files.list()) == []
    # The money stays.
    billed(api, batch, found)


def counts(**some: int) -> dict[str, int]:
    names = ("processing", "succeeded", "errored", "canceled", "expired")
    return dict.fromkeys(names, 0) | some


def billed(api: Api, batch: MessageBatch, found: dict[str, Any]) -> None:
    """The invoice is that of the batch: the tokens of its messages, at half the list price."""
    invoice = api.ask("GET", f"/v1/batches/{ids.render('batch', row(batch))}/invoice").json
    usages = [each["message"]["usage"] for each in found.values() if "message" in each]
    total = sum(
        Decimal("0.01") * usage["input_tokens"] + Decimal("0.02") * usage["output_tokens"]
        for usage in usages
    )
    assert Decimal(invoice["total"]) == total / 1_000_000


def test_both_doors_show_one_batch(api: Api, engine: Engine) -> None:
    client = sdk(api)
    made = client.messages.batches.create(requests=requests(PARAMS))
    theirs = api.client.batches.retrieve(ids.render("batch", row(made)))
    assert (theirs.endpoint, theirs.completion_window) == ("/v1/chat/completions", "24h")
    file = api.upload(factories.jsonl([factories.chat_line("a")]))["id"]
    request = {"input_file_id": file, "completion_window": "24h"}
    ours = api.ask("POST", "/v1/batches", request | {"endpoint": "/v1/chat/completions"}).json
    hidden = api.ask("POST", "/v1/batches", request | {"endpoint": "/v1/embeddings"}).json
    shown = client.messages.batches.retrieve(f"msg{ours['id']}")
    finish(engine, shown)
    assert results_of(client, shown)["a"]["type"] == "succeeded"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve(f"msg{hidden['id']}")
    assert [each.id for each in client.messages.batches.list()] == [shown.id, made.id]


def test_sealing_changes_no_result(api: Api, engine: Engine) -> None:
    client = sdk(api)
    batch = client.messages.batches.create(requests=requests(PARAMS, PARAMS, {}))
    finish(engine, batch)
    path = f"{PATH}/{batch.id}/results"
    before = api.ask("GET", path)
    assert before.headers["content-type"] == "application/x-jsonl"
    seal.run()
    assert engines.read(row(batch)).sealed_at is not None
    assert api.ask("GET", path).body == before.body
    assert len(before.body.splitlines()) == 3


def test_requests_that_are_all_invalid_are_results_too(api: Api, engine: Engine) -> None:
    client = sdk(api)
    batch = client.messages.batches.create(requests=requests({}, PARAMS | {"model": "none"}))
    assert finish(engine, batch).status == "failed"
    ended = client.messages.batches.retrieve(batch.id)
    assert (ended.processing_status, ended.request_counts.errored) == ("ended", 2)
    found = results_of(client, batch)
    assert found["request-0"]["error"]["error"]["message"].startswith("params.model: `model`")
    assert found["request-1"]["error"]["error"]["message"].startswith("params.model: There is no")


def test_a_batch_is_cancelled_before_and_while_it_runs(api: Api, engine: Engine) -> None:
    client = sdk(api)
    early, late = (client.messages.batches.create(requests=requests(PARAMS, {})) for _ in range(2))
    validate.run(row(late))
    for batch in (early, late):
        canceled = client.messages.batches.cancel(batch.id)
        assert canceled.processing_status == "canceling"
        assert canceled.cancel_initiated_at is not None
        # A second time it changes nothing.
        assert client.messages.batches.cancel(batch.id).processing_status == "canceling"
        with pytest.raises(anthropic.BadRequestError, match="has not ended"):
            client.messages.batches.delete(batch.id)
        finalize.run(row(batch))
    for batch, errored in ((early, 0), (late, 1)):
        ended = client.messages.batches.cancel(batch.id)
        assert ended.processing_status == "ended"
        assert ended.request_counts.to_dict() == counts(canceled=2 - errored, errored=errored)
        found = results_of(client, batch)
        assert found["request-0"] == {"type": "canceled"}
        assert found["request-1"]["type"] == ("errored" if errored else "canceled")


def test_results_that_are_gone_archive_their_batch(api: Api, engine: Engine) -> None:
    client = sdk(api)
    batch = client.messages.batches.create(requests=requests(PARAMS))
    ended = finish(engine, batch)
    assert ended.output_file_id is not None
    api.client.files.delete(ids.render("file", ended.output_file_id))
    shown = client.messages.batches.retrieve(batch.id)
    assert (shown.results_url, shown.archived_at is not None) == (None, True)
    answer = api.ask("GET", f"{PATH}/{batch.id}/results")
    assert (answer.status, answer.json["error"]["type"]) == (404, "not_found_error")
    assert client.messages.batches.delete(batch.id).id == batch.id


def test_a_file_that_something_else_reads_survives_the_deletion(api: Api, engine: Engine) -> None:
    client = sdk(api)
    batch = client.messages.batches.create(requests=requests(PARAMS))
    input_file = ids.render("file", finish(engine, batch).input_file_id)
    request = {"input_file_id": input_file, "endpoint": "/v1/chat/completions"}
    api.ask("POST", "/v1/batches", request | {"completion_window": "24h"})
    client.messages.batches.delete(batch.id)
    assert api.client.files.retrieve(input_file).id == input_file


def test_pages_in_both_directions(api: Api) -> None:
    client = sdk(api)
    made = [client.messages.batches.create(requests=requests(PARAMS)).id for _ in range(5)]
    newest = made[::-1]
    assert [each.id for each in client.messages.batches.list(limit=2)] == newest
    page = client.messages.batches.list(limit=2, before_id=newest[4])
    assert ([each.id for each in page.data], page.has_more) == (newest[2:4], True)
    assert [each.id for each in page] == [*newest[2:4], *newest[0:2]]
    page = client.messages.batches.list(limit=2, before_id=newest[1])
    assert ([each.id for each in page.data], page.has_more) == (newest[:1], False)
    for query in ("limit=0", "limit=1001", "after_id=x", f"after_id={made[0]}&before_id={made[0]}"):
        answer = api.ask("GET", f"{PATH}?{query}")
        assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")


def test_the_beta_calls_are_the_same(api: Api, engine: Engine) -> None:
    beta = sdk(api).beta.messages.batches
    batch = beta.create(requests=requests(PARAMS), betas=["message-batches-2024-09-24"])
    finish(engine, MessageBatch.model_validate(batch.to_dict()))
    (result,) = beta.results(batch.id)
    assert result.result.type == "succeeded"
    assert [each.id for each in beta.list()] == [batch.id]


def test_a_repeated_request_makes_one_batch(api: Api) -> None:
    before = objects()
    headers = {"idempotency-key": "one"}
    body = {"requests": requests(PARAMS)}
    first, second = (api.ask("POST", PATH, body, headers=headers) for _ in range(2))
    assert first.json == second.json
    assert second.headers["idempotent-replayed"] == "true"
    other = api.ask("POST", PATH, {"requests": requests({})}, headers=headers)
    assert other.status == 400
    assert "was used for another request" in other.json["error"]["message"]
    with db.reading() as session:
        (file,) = session.scalars(select(File)).all()
    # Neither the documents nor the files of the other requests stay.
    assert objects() - before == {storage.key(file.id)}


def objects() -> set[str]:
    folder = storage.folder()
    return {str(path.relative_to(folder)) for path in (folder / "input").rglob("*")}


@pytest.mark.parametrize("process", [0, 1])
def test_a_large_document_is_converted_apart(
    api: Api, configure: Callable[..., None], process: int
) -> None:
    configure(validation_processes=process)
    params = PARAMS | {"messages": [{"role": "user", "content": "Where is my parcel? " * 50}]}
    batch = sdk(api).messages.batches.create(requests=requests(*[params] * 1_000))
    assert batch.request_counts.processing == 1_000
    with db.reading() as session:
        file = session.get_one(File, session.get_one(Batch, row(batch)).input_file_id)
    lines = b"".join(storage.chunks(storage.key(file.id))).splitlines()
    assert (len(lines), file.size) == (1_000, storage.size(storage.key(file.id)))
    assert json.loads(lines[999])["custom_id"] == "request-999"
    refused = api.ask("POST", PATH, {"requests": requests(*[params] * 1_000, {}) + requests({})})
    assert refused.status == 400
    assert "'request-0' is there twice" in refused.json["error"]["message"]


def test_a_document_that_takes_too_long_is_not_sent_again(
    api: Api, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(validation_processes=1)
    monkeypatch.setattr(apart, "WORK_TIMEOUT", 0.0)
    params = PARAMS | {"system": "Be brief. " * 100}
    client = sdk(api).with_options(max_retries=2)
    before = objects()
    with pytest.raises(anthropic.APIStatusError) as caught:
        client.messages.batches.create(requests=requests(*[params] * 1_000))
    assert caught.value.status_code == 413
    assert "Split it into several batches" in str(caught.value)
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"
    assert objects() == before


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "empty"),
        (b"{", "not valid JSON"),
        (b"[]", "not valid JSON"),
        (b"{}", "requests: a list is missing"),
        (b'{"requests": []}', "requests: the list is empty"),
        (b'{"requests": [1]}', "requests[0] must be an object"),
        (b'{"requests": [{"a": [}]}', "not valid JSON"),
        (b'{"requests": [{"custom_id": ""}]}', "requests[0].custom_id"),
        (b'{"requests": [{"params": {}}]}', "requests[0].custom_id"),
    ],
)
def test_a_document_that_is_none_is_refused(api: Api, body: bytes, word: str) -> None:
    answer = api.ask("POST", PATH, body)
    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")
    assert word in answer.json["error"]["message"]


def test_a_request_that_hides_something_fails_alone(api: Api, engine: Engine) -> None:
    deep = "[" * 900 + "]" * 900
    good = json.dumps(PARAMS)
    body = (
        f'{{"requests": [{{"custom_id": "a", "params": {good}}},'
        f'{{"custom_id": "b", "params": {{"model": "x", "model": "y"}}}},'
        f'{{"custom_id": "c", "params": {{"model": {deep}}}}}]}}'
    ).encode()
    batch = MessageBatch.model_validate(api.ask("POST", PATH, body).json)
    finish(engine, batch)
    found = results_of(sdk(api), batch)
    assert {name: each["type"] for name, each in found.items()} == {
        "a": "succeeded",
        "b": "errored",
        "c": "errored",
    }
    assert "there twice" in found["b"]["error"]["error"]["message"]


def test_the_limits_are_those_of_the_other_door(api: Api, configure: Callable[..., None]) -> None:
    configure(max_batch_lines=2, max_file_bytes=5_000, max_line_bytes=1_000)
    client = sdk(api)
    with pytest.raises(anthropic.APIStatusError) as caught:
        client.messages.batches.create(requests=requests(*[PARAMS] * 3))
    assert (caught.value.status_code, kind(caught.value)) == (413, "request_too_large")
    with pytest.raises(anthropic.APIStatusError) as caught:
        client.messages.batches.create(requests=requests(PARAMS | {"system": "a" * 6_000}))
    assert (caught.value.status_code, kind(caught.value)) == (413, "request_too_large")
    # A document without a length.
    chunks = iter([b'{"requests": [', b" " * 6_000, b"]}"])
    answer = client._client.post(PATH, content=chunks, headers={"x-api-key": api.key})
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "request_too_large")
    configure(quota_open_batches=0)
    with pytest.raises(anthropic.RateLimitError) as limited:
        client.messages.batches.create(requests=requests(PARAMS))
    assert kind(limited.value) == "rate_limit_error"
    with db.reading() as session:
        assert session.scalars(select(File)).all() == []


def kind(error: anthropic.APIStatusError) -> str:
    """The type in an error's body, which has the shape that clients parse."""
    assert isinstance(error.body, dict)
    assert set(error.body) == {"type", "error", "request_id"}
    assert error.body["type"] == "error"
    assert set(error.body["error"]) == {"type", "message"}
    assert error.body["error"]["message"]
    assert error.body["request_id"] == error.request_id
    return str(error.body["error"]["type"])


def test_errors_are_those_that_the_client_raises(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    client = sdk(api)
    for raised, type, call in (
        (anthropic.AuthenticationError, "authentication_error", lambda: wrong(api)),
        (anthropic.NotFoundError, "not_found_error", lambda: client.messages.batches.retrieve("x")),
        (anthropic.NotFoundError, "not_found_error", lambda: client.messages.create(**PARAMS)),
        (anthropic.APIStatusError, "invalid_request_error", lambda: put(client)),
        (anthropic.PermissionDeniedError, "permission_error", lambda: reader(api)),
    ):
        with pytest.raises(raised) as caught:
            call()
        assert kind(caught.value) == type

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("xalen_batch.api.anthropic.objects.get", broken)
    with pytest.raises(anthropic.InternalServerError) as caught:
        client.messages.batches.retrieve("x")
    assert kind(caught.value) == "api_error"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", f"/v1{PATH}"])
def test_other_calls_are_told_what_there_is(api: Api, path: str) -> None:
    answer = api.ask("POST", path, PARAMS)
    assert (answer.status, answer.json["error"]["type"]) == (404, "not_found_error")
    said = answer.json["error"]["message"]
    assert "Messages run in batches here, at /v1/messages/batches" in said
    assert said.endswith(f"The base_url of Anthropic's client is http://127.0.0.1:{api.port}.")


def wrong(api: Api) -> None:
    sdk(api, api_key="xln_test_wrong").messages.batches.list()


def reader(api: Api) -> None:
    key = new_key(scopes=["read"])
    sdk(api, api_key=key).messages.batches.create(requests=requests(PARAMS))


def put(client: anthropic.Anthropic) -> None:
    client.put(PATH, cast_to=object)
