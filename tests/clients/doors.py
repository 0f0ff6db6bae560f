"""The clients of other APIs run batches to their end: AzureOpenAI, and anthropic.

Only OPENAI_BASE_URL and OPENAI_API_KEY point them at the server. Prints a summary as JSON.
"""

import json
import os
import time
from importlib.metadata import version
from typing import Any

import anthropic
import openai

MODEL = "mistral-small-3-1"
HOST = os.environ["OPENAI_BASE_URL"].removesuffix("/v1")
KEY = os.environ["OPENAI_API_KEY"]
PATIENCE = 120.0


def wait(look: Any, is_over: Any) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not is_over(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def azure() -> int:
    client = openai.AzureOpenAI(azure_endpoint=HOST, api_key=KEY, api_version="2025-03-01-preview")
    messages = [{"role": "user", "content": "Where is my parcel?"}]
    line = {"custom_id": "a", "method": "POST", "url": "/chat/completions"}
    content = json.dumps({**line, "body": {"model": MODEL, "messages": messages}}).encode()
    file = client.files.create(file=("a.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/chat/completions",  # type: ignore[arg-type]
        completion_window="24h",
    )
    batch = wait(lambda: client.batches.retrieve(batch.id), lambda found: found.completed_at)
    (result,) = client.files.content(batch.output_file_id).text.splitlines()
    usage: int = json.loads(result)["response"]["body"]["usage"]["total_tokens"]
    live = client.chat.completions.create(model=MODEL, messages=messages)  # type: ignore[arg-type]
    assert live.choices[0].message.content
    return usage


def anthropics() -> int:
    client = anthropic.Anthropic(base_url=HOST, api_key=KEY)
    params: Any = {
        "model": MODEL,
        "max_tokens": 20,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "Where is my parcel?"}],
    }
    requests: Any = [{"custom_id": str(number), "params": params} for number in range(100)]
    requests.append({"custom_id": "bad", "params": {**params, "max_tokens": 0}})
    batch = client.messages.batches.create(requests=requests)
    assert batch.request_counts.processing == 101
    batch = wait(
        lambda: client.messages.batches.retrieve(batch.id),
        lambda found: found.processing_status == "ended",
    )
    assert (batch.request_counts.succeeded, batch.request_counts.errored) == (100, 1)
    results = {each.custom_id: each.result for each in client.messages.batches.results(batch.id)}
    assert results.pop("bad").type == "errored"
    usages = [each.message.usage for each in results.values() if each.type == "succeeded"]
    assert len(usages) == 100
    client.messages.batches.delete(batch.id)
    return sum(usage.input_tokens + usage.output_tokens for usage in usages)


print(  # noqa: T201
    json.dumps(
        {
            "sdk": f"anthropic {version('anthropic')}, AzureOpenAI {version('openai')}",
            "usage": azure() + anthropics(),
        }
    )
)
