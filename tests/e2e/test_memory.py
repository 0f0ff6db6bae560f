"""Memory does not grow with a file's size: the api's for a large upload, the worker's for a large
batch.
"""

import io
import json
from pathlib import Path

import openai

from tests import factories
from tests.e2e.processes import System, wait_until

MIB = 1024 * 1024
SIZE = 190 * MIB
GROWTH = 80 * MIB


def peak(system: System, part: str) -> int:
    """The most memory that a part has had so far, in bytes."""
    pid = int(next((system.data_dir / "run").glob(f"{part}*.pid")).read_text())
    line = next(
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )
    return int(line.split()[1]) * 1024


def test_a_large_upload_does_not_grow_the_api(running_system: System) -> None:
    client = openai.OpenAI(base_url=running_system.base_url, api_key=running_system.test_key)
    client.files.delete(client.files.create(file=io.BytesIO(b"{}\n"), purpose="batch").id)
    before = peak(running_system, "api")
    line = json.dumps(factories.chat_line("line", "x" * 4000)).encode() + b"\n"
    content = line * (SIZE // len(line))
    file = client.files.create(file=("large.jsonl", content), purpose="batch")
    assert file.bytes == len(content)
    read = 0
    with client.files.with_streaming_response.content(file.id) as answer:
        for chunk in answer.iter_bytes():
            read += len(chunk)
    assert read == len(content)
    assert peak(running_system, "api") - before < GROWTH
    client.files.delete(file.id)


def run_batch(client: openai.OpenAI, lines: int) -> int:
    """Run a batch of lines of 16 kB each, mostly blanks, which are cheap for the simulated model;
    return the size of its file.
    """
    content = factories.jsonl(
        [
            factories.chat_line(f"line-{n}", "Where is my parcel?" + " " * 16_000, max_tokens=1)
            for n in range(lines)
        ]
    )
    file = client.files.create(file=("lines.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    wait_until(lambda: client.batches.retrieve(batch.id).status == "completed")
    client.files.delete(file.id)
    return len(content)


def test_a_larger_batch_does_not_grow_the_worker(running_system: System) -> None:
    client = openai.OpenAI(base_url=running_system.base_url, api_key=running_system.test_key)
    run_batch(client, 1_200)
    before = peak(running_system, "worker")
    assert run_batch(client, 12_000) > 180 * MIB
    assert peak(running_system, "worker") - before < GROWTH
