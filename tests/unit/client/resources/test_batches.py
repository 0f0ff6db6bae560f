"""A batch in one call, with both kinds of clients, over a network that breaks."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.unit.client import stub_api
from tests.unit.client.stub_api import KEY, Api, answer, jsonl, refusal
from xalen import XALEN, AsyncXALEN, BatchFailed, LineResult, StillRunning
from xalen.batch import outage, upload, watch

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
REQUESTS = [{"custom_id": custom_id, "body": BODY} for custom_id in "abc"]


def sync_run(api: Api, requests: Any, **options: Any) -> tuple[Any, list[LineResult[Any]]]:
    # The pauses of `openai` between its own repetitions would be waited for.
    with XALEN(api_key=KEY, base_url=api.base_url, max_retries=0) as client:
        results = client.batches.run(requests, poll_interval=0, **options)
        return results, list(results)


def async_run(api: Api, requests: Any, **options: Any) -> tuple[Any, list[LineResult[Any]]]:
    async def main() -> tuple[Any, list[LineResult[Any]]]:
        async with AsyncXALEN(api_key=KEY, base_url=api.base_url, max_retries=0) as client:
            results = await client.batches.run(requests, poll_interval=0, **options)
            return results, [result async for result in results]

    return asyncio.run(main())


Run = Callable[..., tuple[Any, list[LineResult[Any]]]]
both = pytest.mark.parametrize("run", [sync_run, async_run])


@pytest.fixture(autouse=True)
def _results(api: Api) -> None:
    api.contents["output"] = jsonl(answer("a", "A" * 3000), answer("c", "C"))
    api.contents["errors"] = jsonl(refusal("b"))


def check(found: list[LineResult[Any]]) -> None:
    assert [result.custom_id for result in found] == ["a", "b", "c"]
    assert isinstance(found[0].response, ChatCompletion)
    assert found[0].response.choices[0].message.content == "A" * 3000
    assert found[1].response is None
    assert found[1].error is not None
    assert (found[1].error.code, found[1].error.message) == ("batch_expired", "late")
    assert [result.request and result.request["custom_id"] for result in found] == ["a", "b", "c"]


@both
def test_results_come_typed_and_joined(api: Api, run: Run) -> None:
    seen: list[str] = []
    results, found = run(api, REQUESTS, progress=lambda batch: seen.append(batch.status))
    check(found)
    assert results.batch.id == "batch_1"
    assert results.invoice.total == "0.5"
    # The answer to the creation is not reported.
    assert seen == ["in_progress", "completed"]


@both
def test_a_batch_is_created_with_what_was_given(api: Api, run: Run) -> None:
    window = {"start": "22:00", "end": "06:00"}
    run(
        api,
        REQUESTS,
        completion_window="48h",
        metadata={"night": "1"},
        execution_window=window,
        on_invalid="skip",
        output_expires_after={"anchor": "created_at", "seconds": 3600},
        idempotency_key="night-1",
    )
    (body,) = (body for verb, path, _, body in api.requests if (verb, path) == ("POST", "/batches"))
    assert openai.BaseModel.model_validate_json(body).to_dict() == {
        "input_file_id": "file-in",
        "endpoint": "/v1/chat/completions",
        "completion_window": "48h",
        "metadata": {"night": "1"},
        "output_expires_after": {"anchor": "created_at", "seconds": 3600},
        "execution_window": window,
        "on_invalid": "skip",
    }
    assert api.sent("POST", "/files")[0]["idempotency-key"] == "night-1.file"
    assert api.sent("POST", "/batches")[0]["idempotency-key"] == "night-1.batch"


@both
def test_a_server_that_is_away_while_the_batch_runs_costs_time_alone(api: Api, run: Run) -> None:
    api.outages = [0] * 4 + [503] * 4 + [429] * 4
    check(run(api, REQUESTS)[1])
    assert not api.outages


@both
def test_a_server_that_stays_away_is_an_error_of_openai(
    api: Api, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "PATIENCE", 0)
    api.outages = [0] * 1000
    with pytest.raises(openai.APIConnectionError) as caught:
        run(api, REQUESTS)
    assert "client.batches.wait('batch_1')" in caught.value.__notes__[0]


@both
@pytest.mark.parametrize("is_sealed", [True, False])
def test_a_broken_download_goes_on_where_it_broke(api: Api, run: Run, is_sealed: bool) -> None:
    api.is_sealed = is_sealed
    api.cuts = [0, 0, 100, 1, 2000, 7]
    check(run(api, REQUESTS)[1])
    assert not api.cuts
    ranges = [headers.get("range") for headers in api.sent("GET", "/files/file-out/content")]
    assert any(ranges) == is_sealed


@both
def test_a_download_that_never_ends_well_is_an_error_of_openai(
    api: Api, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "PATIENCE", 0)
    api.cuts = [0] * 1000
    with pytest.raises(openai.APIConnectionError, match="middle of an answer"):
        run(api, REQUESTS)


@both
def test_a_failed_batch_is_an_error_with_the_first_lines(api: Api, run: Run) -> None:
    api.statuses = ["validating", "failed"]
    errors = [
        {"code": "c", "line": line, "message": f"bad {line}", "param": None} for line in range(1, 8)
    ]
    api.fields = {"errors": {"object": "list", "data": errors}}
    with pytest.raises(
        BatchFailed, match=r"batch_1 failed validation; line 1: bad 1;.*and 2 more"
    ) as caught:
        run(api, REQUESTS)
    assert caught.value.batch.id == "batch_1"
    assert not hasattr(caught.value, "__notes__")


@both
def test_a_key_without_the_scope_has_no_invoice(api: Api, run: Run) -> None:
    api.invoice = (403, {"error": {"message": "scope"}})
    results, found = run(api, REQUESTS)
    assert results.invoice is None
    check(found)


@both
def test_a_file_is_uploaded_as_it_is_and_joined(api: Api, run: Run, tmp_path: Path) -> None:
    lines = [{**line, "method": "POST", "url": stub_api.ENDPOINT} for line in REQUESTS]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n" + jsonl(*lines))
    check(run(api, path)[1])
    assert api.contents["input"] == path.read_bytes()
    # The lines that were sent are read where they came from.
    assert not api.sent("GET", "/files/file-in/content")


@both
def test_a_file_that_has_changed_is_read_from_the_server(
    api: Api, run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(*REQUESTS))

    def change(_: object) -> None:
        path.write_bytes(b"{}\n")

    check(run(api, path, endpoint=stub_api.ENDPOINT, progress=change)[1])
    assert len(api.sent("GET", "/files/file-in/content")) == 1


def test_a_wait_finds_the_results_of_any_batch(api: Api) -> None:
    api.statuses = ["completed"]
    api.contents["input"] = jsonl(*REQUESTS)
    client = XALEN(api_key=KEY, base_url=api.base_url)
    results = client.batches.wait("batch_1")
    check(list(results))
    check(list(results))
    assert repr(results) == "<BatchResults of batch_1, completed>"


def test_a_wait_reads_results_whose_input_was_deleted(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.statuses = ["completed"]
    api.fields = {"input_file_id": "gone"}
    client = XALEN(api_key=KEY, base_url=api.base_url)
    monkeypatch.setitem(stub_api.FILES, "gone", "gone")
    handle = stub_api.Handler._content

    def content(handler: Any, name: str) -> None:
        if name == "gone":
            handler._json(404, {"error": {"message": "gone"}})
        else:
            handle(handler, name)

    monkeypatch.setattr(stub_api.Handler, "_content", content)
    found = list(client.batches.wait("batch_1"))
    assert [(result.custom_id, result.request) for result in found] == [
        ("a", None),
        ("c", None),
        ("b", None),
    ]


def test_submit_does_not_wait(api: Api) -> None:
    client = XALEN(api_key=KEY, base_url=api.base_url)
    assert client.batches.submit(REQUESTS).status == "validating"
    assert not api.sent("GET", "/batches/batch_1")


def test_a_loop_that_ends_early_closes_its_connections(api: Api) -> None:
    api.contents["output"] = jsonl(
        answer("a", "A"), *[answer(f"x{n}", "X" * 9999) for n in range(999)]
    )
    with XALEN(api_key=KEY, base_url=api.base_url) as client:
        for result in client.batches.run(REQUESTS, poll_interval=0):
            assert result.custom_id == "a"
            break
        pool = client._client._transport._pool  # type: ignore[attr-defined]
        assert all(
            connection.is_idle() or connection.is_closed() for connection in pool.connections
        )


def sync_list(api: Api, **filters: Any) -> None:
    with XALEN(api_key=KEY, base_url=api.base_url, max_retries=0) as client:
        client.batches.list(**filters)


def async_list(api: Api, **filters: Any) -> None:
    async def main() -> None:
        async with AsyncXALEN(api_key=KEY, base_url=api.base_url, max_retries=0) as client:
            await client.batches.list(**filters)

    asyncio.run(main())


@pytest.mark.parametrize("ask", [sync_list, async_list])
def test_a_list_has_filters(api: Api, ask: Callable[..., None]) -> None:
    ask(api, status="failed", metadata={"team": "search"}, order="asc", limit=5)
    method, target, *_ = api.requests[-1]
    assert (method, urlsplit(target).path) == ("GET", "/batches")
    assert sorted(parse_qsl(urlsplit(target).query)) == [
        ("limit", "5"),
        ("metadata[team]", "search"),
        ("order", "asc"),
        ("status", "failed"),
    ]


def streamed(*statuses: str, more: bytes = b"") -> bytes:
    """The body of an event stream."""
    told = b": heartbeat\nretry: 2000\n"
    for status in statuses:
        batch = {"id": "batch_1", "status": status, "output_file_id": "file-out"}
        told += b"id: x\nevent: progress\ndata: " + json.dumps(batch).encode() + b"\n\n: beat\n"
    return told + more


def sync_wait(api: Api, **options: Any) -> Any:
    with XALEN(api_key=KEY, base_url=api.base_url, max_retries=0) as client:
        return client.batches.wait("batch_1", **options)


def async_wait(api: Api, **options: Any) -> Any:
    async def main() -> Any:
        async with AsyncXALEN(api_key=KEY, base_url=api.base_url, max_retries=0) as client:
            return await client.batches.wait("batch_1", **options)

    return asyncio.run(main())


waits = pytest.mark.parametrize("wait", [sync_wait, async_wait])


@waits
def test_a_wait_follows_the_events(api: Api, wait: Callable[..., Any]) -> None:
    api.streams = [streamed("in_progress", "finalizing", "completed")]
    seen: list[str] = []
    results = wait(api, progress=lambda batch: seen.append(batch.status))
    assert seen == ["validating", "in_progress", "finalizing", "completed"]
    assert results.batch.output_file_id == "file-out"
    assert len(api.sent("GET", "/batches/batch_1")) == 1


@waits
@pytest.mark.parametrize("body", [b"", streamed("in_progress", more=b"data: no JSON\n\n"), None])
def test_a_wait_polls_where_the_events_fail(
    api: Api, wait: Callable[..., Any], body: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "FIRST_PAUSE", 0.001)
    api.streams = [] if body is None else [body, streamed("completed")]
    assert wait(api).batch.status == "completed"
    assert len(api.sent("GET", "/batches/batch_1/events")) == 1


@waits
def test_a_stream_that_ended_before_its_batch_is_opened_again(
    api: Api, wait: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SHORTEST_STREAM", 0.0)
    api.statuses = ["in_progress"]
    api.streams = [streamed("in_progress"), streamed("cancelled")]
    assert wait(api).batch.status == "cancelled"


@waits
@pytest.mark.parametrize("options", [{"poll_interval": 0}, {"max_wait_seconds": 60}])
def test_who_names_a_time_polls(
    api: Api, wait: Callable[..., Any], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "FIRST_PAUSE", 0.001)
    assert wait(api, **options).batch.status == "completed"
    assert api.sent("GET", "/batches/batch_1/events") == []


def test_a_retry_sends_what_is_given(api: Api) -> None:
    api.others["POST /batches/batch_1/retry"] = {"id": "batch_2", "retry_of": "batch_1"}

    async def ask() -> str:
        async with AsyncXALEN(api_key=KEY, base_url=api.base_url) as client:
            return (await client.batches.retry("batch_1")).id

    with XALEN(api_key=KEY, base_url=api.base_url) as client:
        made = client.batches.retry("batch_1", codes=["http_503"], metadata={"try": "2"})
    assert (made.id, asyncio.run(ask())) == ("batch_2", "batch_2")
    bodies = [body for verb, _, _, body in api.requests if verb == "POST"]
    assert json.loads(bodies[0]) == {"codes": ["http_503"], "metadata": {"try": "2"}}
    assert json.loads(bodies[1]) == {}
    assert api.sent("POST", "/batches/batch_1/retry")[0]["idempotency-key"]


RETRIES = {"object": "list", "data": [{"id": "batch_2"}, {"id": "batch_3"}], "has_more": False}


def test_the_retries_of_a_batch_are_listed(api: Api) -> None:
    api.others["GET /batches/batch_1/retries"] = RETRIES

    async def ask() -> list[str]:
        async with AsyncXALEN(api_key=KEY, base_url=api.base_url) as client:
            return [batch.id async for batch in client.batches.retries("batch_1")]

    with XALEN(api_key=KEY, base_url=api.base_url) as client:
        assert [batch.id for batch in client.batches.retries("batch_1")] == ["batch_2", "batch_3"]
    assert asyncio.run(ask()) == ["batch_2", "batch_3"]


def sync_merged(api: Api, **options: Any) -> list[LineResult[Any]]:
    with XALEN(api_key=KEY, base_url=api.base_url, max_retries=0) as client:
        return list(client.batches.wait("batch_1", merged=True, poll_interval=0, **options))


def async_merged(api: Api, **options: Any) -> list[LineResult[Any]]:
    async def main() -> list[LineResult[Any]]:
        async with AsyncXALEN(api_key=KEY, base_url=api.base_url, max_retries=0) as client:
            results = await client.batches.wait("batch_1", merged=True, poll_interval=0, **options)
            return [result async for result in results]

    return asyncio.run(main())


merges = pytest.mark.parametrize("merged", [sync_merged, async_merged])


@pytest.fixture
def _merged(api: Api) -> None:
    api.others["GET /batches/batch_1/retries"] = RETRIES
    api.contents["input"] = jsonl(*REQUESTS, {"no": "line"})
    api.contents["merged"] = jsonl(
        answer("a", "A" * 3000),
        answer("b", "again"),
        refusal("c"),
        refusal("line-4", "invalid"),
    )
    # The server states no digest of merged results.
    api.is_sealed = False


@merges
@pytest.mark.usefixtures("_merged")
def test_merged_results_are_the_last_of_each_line(
    api: Api, merged: Callable[..., list[LineResult[Any]]]
) -> None:
    api.cuts = [100, 2000]
    found = merged(api)
    assert [result.custom_id for result in found] == ["a", "b", "c", "line-4"]
    assert found[1].response is not None
    assert found[1].response.choices[0].message.content == "again"
    assert [result.error and result.error.code for result in found[2:]] == [
        "batch_expired",
        "invalid",
    ]
    assert [result.request for result in found] == [*REQUESTS, {"no": "line"}]
    assert not api.cuts
    # Only the merged results are read.
    assert not api.sent("GET", "/files/file-out/content")


@merges
@pytest.mark.usefixtures("_merged")
def test_merged_results_come_when_the_retries_have_ended(
    api: Api, merged: Callable[..., list[LineResult[Any]]]
) -> None:
    api.statuses = ["completed", "in_progress", "in_progress", "failed", "completed"]
    assert len(merged(api)) == 4
    asked = [len(api.sent("GET", f"/batches/batch_{number}")) for number in (1, 2, 3)]
    # One retry failed its validation, which does not hide the results of the others.
    assert asked == [1, 3, 1]


@merges
@pytest.mark.usefixtures("_merged")
def test_the_time_to_wait_is_that_of_a_batch_with_its_retries(
    api: Api, merged: Callable[..., list[LineResult[Any]]]
) -> None:
    api.statuses = ["completed", "in_progress"]
    with pytest.raises(StillRunning, match="batch_2"):
        merged(api, max_wait_seconds=0.05)


@both
def test_a_large_input_is_sent_in_parts(
    api: Api, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PART", 100)
    api.upload = {}
    check(run(api, REQUESTS)[1])
    assert len(api.parts) > 1
    assert not api.sent("POST", "/files")
