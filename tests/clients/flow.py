"""A batch from upload to invoice through the official Python SDK, both openai 2.x and 3.x.

Only OPENAI_BASE_URL and OPENAI_API_KEY point it at the server. It asserts each answer and prints a
JSON summary; any difference ends it with a traceback.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

import openai
from openai import OpenAI

CHAT = "mistral-small-3-1"
RERANK = "bge-reranker-v2"
URL: Literal["/v1/chat/completions"] = "/v1/chat/completions"
ENDED = {"completed", "failed", "expired", "cancelled"}


def line(custom_id: str, content: str, model: str = CHAT) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 8}
    return {"custom_id": custom_id, "method": "POST", "url": URL, "body": body}


def jsonl(lines: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def wait(client: OpenAI, batch_id: str) -> Any:
    """The batch once it has ended. Any: the asserts say which of its optional fields are there."""
    deadline = time.monotonic() + 180
    while (batch := client.batches.retrieve(batch_id)).status not in ENDED:
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
    return batch


def raises(
    kind: type[openai.APIStatusError], call: Callable[[], object], code: str | None = None
) -> None:
    try:
        call()
    except kind as caught:
        error = caught
    else:
        raise AssertionError(f"no {kind.__name__}")
    assert error.message, error
    assert error.request_id, "no x-request-id"
    assert code is None or error.code == code, (error.code, code)


def models(client: OpenAI) -> None:
    assert {CHAT, RERANK} <= {model.id for model in client.models.list()}
    model = client.models.retrieve(CHAT)
    assert (model.id, model.object, model.owned_by) == (CHAT, "model", "mistralai"), model
    raises(openai.NotFoundError, lambda: client.models.retrieve("mistral-small-9"))


def upload(client: OpenAI, name: str, data: bytes) -> str:
    file = client.files.create(file=(name, data), purpose="batch")
    assert (file.object, file.purpose, file.status, file.bytes, file.filename) == (
        "file",
        "batch",
        "processed",
        len(data),
        name,
    ), file
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == data
    return file.id


def complete(client: OpenAI) -> dict[str, Any]:
    """Two lines succeed and one is refused; output and error file say so, in input order."""
    query = json.dumps(
        {"query": "parcel", "documents": ["A parcel is late.", "A card is declined."]}
    )
    lines = [line("a", "Say hello."), line("b", "not an object", RERANK), line("c", query, RERANK)]
    file_id = upload(client, "three.jsonl", jsonl(lines))
    created = client.batches.create(
        input_file_id=file_id, endpoint=URL, completion_window="24h", metadata={"night": "1"}
    )
    assert (created.object, created.endpoint, created.input_file_id, created.completion_window) == (
        "batch",
        URL,
        file_id,
        "24h",
    ), created
    assert created.metadata == {"night": "1"}
    assert created.expires_at == created.created_at + 86_400
    batch = wait(client, created.id)
    assert batch.status == "completed", batch
    assert (
        batch.request_counts.total,
        batch.request_counts.completed,
        batch.request_counts.failed,
    ) == (3, 2, 1), batch
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens > 0, (
        batch
    )
    answered = [
        json.loads(text) for text in client.files.content(batch.output_file_id).text.splitlines()
    ]
    assert [answer["custom_id"] for answer in answered] == ["a", "c"]
    assert all(
        answer["response"]["status_code"] == 200 and answer["error"] is None for answer in answered
    )
    ranked = json.loads(answered[1]["response"]["body"]["choices"][0]["message"]["content"])
    assert ranked["results"][0]["index"] == 0, ranked
    (refused,) = [
        json.loads(text) for text in client.files.content(batch.error_file_id).text.splitlines()
    ]
    assert (refused["custom_id"], refused["response"]["status_code"]) == ("b", 400)
    assert refused["response"]["body"]["error"]["message"]
    raises(openai.ConflictError, lambda: client.batches.cancel(batch.id), "batch_not_cancellable")
    return {"batch": batch.id, "usage": batch.usage.total_tokens}


def rerank(client: OpenAI) -> None:
    body = {
        "model": RERANK,
        "query": "parcel",
        "documents": ["A card is declined.", "A parcel is late."],
        "top_n": 1,
    }
    file_id = upload(
        client,
        "rank.jsonl",
        jsonl([{"custom_id": "r", "method": "POST", "url": "/v1/rerank", "body": body}]),
    )
    # The SDK's types know OpenAI's endpoints only; the value passes as it is.
    batch = wait(
        client,
        client.batches.create(
            input_file_id=file_id, endpoint="/v1/rerank", completion_window="24h"
        ).id,
    )  # type: ignore[arg-type,unused-ignore]
    assert batch.status == "completed", batch
    answer = json.loads(client.files.content(batch.output_file_id).text)
    assert [result["index"] for result in answer["response"]["body"]["results"]] == [1], answer


def fail(client: OpenAI) -> None:
    """A file that fails validation has an error for each invalid line."""
    file_id = upload(client, "twice.jsonl", jsonl([line("same", "x"), line("same", "y")]))
    batch = wait(
        client,
        client.batches.create(input_file_id=file_id, endpoint=URL, completion_window="24h").id,
    )
    assert batch.status == "failed", batch
    assert [(error.code, error.line) for error in batch.errors.data] == [
        ("duplicate_custom_id", 2)
    ], batch.errors
    assert batch.output_file_id is None
    assert batch.error_file_id is None


def cancel(client: OpenAI) -> Any:
    """A cancelled batch keeps its finished lines and accounts for the others."""
    total = 5_000
    file_id = upload(
        client,
        "many.jsonl",
        jsonl(line(f"n{number}", f"Count to {number}.") for number in range(total)),
    )
    created = client.batches.create(input_file_id=file_id, endpoint=URL, completion_window="24h")
    assert client.batches.cancel(created.id).status in ("cancelling", "cancelled")
    batch = wait(client, created.id)
    assert batch.status == "cancelled", batch
    counts = batch.request_counts
    assert counts.completed + counts.failed <= counts.total <= total, counts
    assert counts.completed < total, counts
    return batch.id


def lists(client: OpenAI, known: set[str]) -> None:
    """Pages of one and two reach every batch and every file once."""
    for page, expected in (
        ([batch.id for batch in client.batches.list(limit=2)], known),
        ([file.id for file in client.files.list(purpose="batch", limit=1)], set()),
    ):
        assert len(page) == len(set(page)) >= len(known), page
        assert expected <= set(page)
    assert client.batches.list(limit=1).has_next_page()


def in_parts(client: OpenAI) -> None:
    """A file that arrives in parts is the file that was sent, whatever name it got."""
    data = jsonl(line(str(number), "x" * 500) for number in range(500))
    sent: dict[str, Any] = {"mime_type": "text/jsonl", "purpose": "batch", "part_size": 100_000}
    done = client.uploads.upload_file_chunked(
        file=data, filename="parts.jsonl", bytes=len(data), **sent
    )
    assert (done.object, done.status, done.bytes) == ("upload", "completed", len(data)), done
    assert done.file is not None
    assert (done.file.object, done.file.bytes, done.file.filename) == (
        "file",
        len(data),
        "parts.jsonl",
    ), done
    assert client.files.content(done.file.id).read() == data
    begun = client.uploads.create(bytes=5, filename="a", mime_type="txt", purpose="batch")
    assert begun.status == "pending", begun
    assert client.uploads.cancel(begun.id).status == "cancelled"
    raises(
        openai.BadRequestError,
        lambda: client.uploads.parts.create(begun.id, data=b"12345"),
        "upload_not_pending",
    )


def delete(client: OpenAI) -> None:
    file_id = upload(client, "gone.jsonl", jsonl([line("x", "y")]))
    deleted = client.files.delete(file_id)
    assert (deleted.id, deleted.deleted, deleted.object) == (file_id, True, "file"), deleted
    raises(openai.NotFoundError, lambda: client.files.retrieve(file_id))
    raises(openai.NotFoundError, lambda: client.files.content(file_id))


def errors(client: OpenAI) -> None:
    raises(openai.NotFoundError, lambda: client.batches.retrieve("batch_unknown"))
    raises(openai.NotFoundError, lambda: client.files.retrieve("file-unknown"))
    raises(
        openai.AuthenticationError,
        lambda: client.with_options(api_key="xln_test_wrong").batches.list(),
        "invalid_api_key",
    )
    raises(
        openai.BadRequestError,
        lambda: client.files.create(file=("a.jsonl", b"{}"), purpose="nonsense"),
    )  # type: ignore[arg-type,unused-ignore]


def main() -> None:
    client = OpenAI(max_retries=0)
    models(client)
    summary = complete(client)
    rerank(client)
    fail(client)
    cancelled = cancel(client)
    lists(client, {summary["batch"], cancelled})
    in_parts(client)
    delete(client)
    errors(client)
    json.dump(
        {"sdk": f"python {openai.__version__}", **summary, "cancelled": cancelled}, sys.stdout
    )


if __name__ == "__main__":
    main()
