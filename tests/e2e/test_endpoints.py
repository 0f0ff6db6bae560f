"""Batches of every endpoint, through the SDK and real workers: answers, usage and invoice."""

import base64
import io
import json
import struct
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import openai
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.responses import Response

from tests.e2e.processes import System
from tests.waiting import wait_until

MISTRAL, BGE = "mistral-small-3-1", "bge-m3"
# USD per million tokens, from the catalog's list; a batch costs half.
PRICES = {MISTRAL: ("0.02", "0.04"), BGE: ("0.003", "0")}


@pytest.fixture
def client(running_system: System) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=running_system.base_url, api_key=running_system.test_key) as opened:
        yield opened


def run(client: openai.OpenAI, endpoint: str, bodies: list[dict[str, Any]], url: str) -> Any:
    """The ended batch of these bodies, and its output lines by custom id."""
    lines = [
        {"custom_id": str(number), "method": "POST", "url": url, "body": body}
        for number, body in enumerate(bodies)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("lines.jsonl", io.BytesIO(content)), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
    wait_until(lambda: client.batches.retrieve(batch.id).status in ("completed", "failed"))
    batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed", batch.errors
    output = client.files.content(batch.output_file_id or "").text if batch.output_file_id else ""
    return batch, {line["custom_id"]: line for line in map(json.loads, output.splitlines())}


def total(client: openai.OpenAI, batch: openai.types.Batch) -> Decimal:
    invoice = client.get(f"/batches/{batch.id}/invoice", cast_to=dict[str, Any])
    return Decimal(invoice["total"])


def cost(model: str, read: int, written: int) -> Decimal:
    prices = PRICES[model]
    gross = read * Decimal(prices[0]) + written * Decimal(prices[1])
    return gross / 1_000_000 / 2


@pytest.mark.parametrize("url", ["/v1/responses", "/responses"])
def test_responses(client: openai.OpenAI, url: str) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    bodies: list[dict[str, Any]] = [
        {"model": MISTRAL, "input": "Where is my parcel?", "max_output_tokens": 5},
        {
            "model": MISTRAL,
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
                call,
                {"type": "function_call_output", "call_id": "c", "output": "42"},
            ],
        },
        # No chat has this tool, and the simulated model has only chats.
        {"model": MISTRAL, "input": "x", "tools": [{"type": "web_search"}]},
    ]
    batch, output = run(client, "/v1/responses", bodies, url)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)
    answers = [
        Response.model_validate(output[key]["response"]["body"], strict=True) for key in "01"
    ]
    assert (answers[0].status, answers[1].status) == ("incomplete", "completed")
    assert answers[0].output_text
    usages = [answer.usage for answer in answers]
    assert total(client, batch) == cost(
        MISTRAL,
        sum(usage.input_tokens for usage in usages if usage),
        sum(usage.output_tokens for usage in usages if usage),
    )
    errors = client.files.content(batch.error_file_id).text
    error = json.loads(errors)["response"]["body"]["error"]
    assert error["param"] == "tools[0].type"
    assert "/v1/responses" in error["message"]


def test_completions(client: openai.OpenAI) -> None:
    body = {"model": MISTRAL, "prompt": ["Once upon a time", "The end"], "n": 2, "max_tokens": 4}
    batch, output = run(client, "/v1/completions", [body], "/v1/completions")
    answer = Completion.model_validate(output["0"]["response"]["body"], strict=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage
    assert total(client, batch) == cost(
        MISTRAL, answer.usage.prompt_tokens, answer.usage.completion_tokens
    )


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["the parcel is late", "my parcel is late", "quantum chromodynamics"]
    bodies: list[dict[str, Any]] = [
        {"model": BGE, "input": texts},
        {"model": BGE, "input": texts[0], "encoding_format": "base64", "dimensions": 1024},
    ]
    batch, output = run(client, "/v1/embeddings", bodies, "/v1/embeddings")
    answer = CreateEmbeddingResponse.model_validate(output["0"]["response"]["body"], strict=True)
    late, mine, other = (each.embedding for each in answer.data)
    assert similarity(late, mine) > 0.5 > similarity(late, other)
    (encoded,) = output["1"]["response"]["body"]["data"]
    decoded = struct.unpack("<1024f", base64.b64decode(encoded["embedding"]))
    assert decoded == pytest.approx(late, abs=1e-6)
    read = sum(output[key]["response"]["body"]["usage"]["prompt_tokens"] for key in "01")
    assert total(client, batch) == cost(BGE, read, 0)
    invoice = client.get(f"/batches/{batch.id}/invoice", cast_to=dict[str, Any])
    assert {line["component"] for line in invoice["lines"]} == {"input", None}


def similarity(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_an_invalid_line_of_each_endpoint_is_named(client: openai.OpenAI) -> None:
    for endpoint, body, param in (
        ("/v1/responses", {"model": MISTRAL, "input": "x", "background": True}, "background"),
        ("/v1/completions", {"model": MISTRAL, "prompt": []}, "prompt"),
        ("/v1/embeddings", {"model": BGE, "input": [""]}, "input"),
    ):
        line = {"custom_id": "a", "method": "POST", "url": endpoint, "body": body}
        file = client.files.create(
            file=("lines.jsonl", io.BytesIO(json.dumps(line).encode())), purpose="batch"
        )
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint=endpoint,
            completion_window="24h",  # type: ignore[arg-type]
        )
        wait_until(lambda id=batch.id: client.batches.retrieve(id).status == "failed")  # type: ignore[misc]
        errors = client.batches.retrieve(batch.id).errors
        assert errors
        assert errors.data
        assert (errors.data[0].line, errors.data[0].param) == (1, f"body.{param}")
