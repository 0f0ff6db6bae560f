"""What a type checker knows of the client."""

import subprocess
import sys
from pathlib import Path

from tests import ROOT

CODE = """
from typing import Any, assert_type
from openai.pagination import SyncCursorPage
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from xalen import XALEN, AsyncBatchResults, AsyncXALEN, BatchResults, LineError, LineResult
from xalen.types import Invoice, RerankResponse, Schedule

client = XALEN()
assert_type(client.with_options(timeout=1), XALEN)
assert_type(client.batches.run("a", endpoint="/v1/chat/completions"), BatchResults[ChatCompletion])
assert_type(client.batches.run([{}], endpoint="/v1/rerank", model="m"), BatchResults[RerankResponse])
assert_type(client.batches.run("a", endpoint="/v1/responses"), BatchResults[Response])
embedded = client.batches.run("a", endpoint="/v1/embeddings", progress=print, poll_interval=1)
assert_type(embedded, BatchResults[CreateEmbeddingResponse])
assert_type(embedded.invoice, Invoice | None)
for result in embedded:
    assert_type(result, LineResult[CreateEmbeddingResponse])
    assert_type(result.response, CreateEmbeddingResponse | None)
    assert_type(result.error, LineError | None)
assert_type(client.batches.run("a"), BatchResults[Any])
assert_type(client.schedules.list(limit=2), SyncCursorPage[Schedule])


async def main() -> None:
    client = AsyncXALEN()
    assert_type(client.with_options(timeout=1), AsyncXALEN)
    ranked = await client.batches.run("a", endpoint="/v1/rerank")
    assert_type(ranked, AsyncBatchResults[RerankResponse])
    async for result in ranked:
        assert_type(result.response, RerankResponse | None)
    async for schedule in client.schedules.list():
        assert_type(schedule, Schedule)


client.schedules.create(name="n", cron="@daily")  # refused
client.schedules.create(name="n", cron="@daily", endpoint="e", overlap="alow")  # refused
client.batches.run("a", endpont="/v1/rerank")  # refused
client.rerank.create(model="m", query="q")  # refused
XALEN(apikey="a")  # refused
"""


def test_types_are_exact_and_mistakes_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "caller.py"
    file.write_text(CODE, "utf-8")
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--cache-dir",
            ROOT / ".mypy_cache/callers",
            file,
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    refused = {
        f"{file.name}:{number}"
        for number, line in enumerate(CODE.splitlines(), start=1)
        if line.endswith("# refused")
    }
    told = [line for line in ran.stdout.splitlines() if "error:" in line]
    assert {":".join(line.split(":")[:2]) for line in told} == refused, ran.stdout
