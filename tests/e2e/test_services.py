"""The services of docker-compose.yml, started by its own commands against servers that are there
already.
"""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from openai import OpenAI

from tests import ROOT
from tests.conftest import Stores
from tests.e2e import processes
from xalen_batch import db
from xalen_batch.accounts import accounts, keys
from xalen_batch.accounts.accounts import Owner

SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))[
    "services"
]
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
BODY = {"model": "mistral-small-3-1", "messages": [{"role": "user", "content": "Hello"}]}


def test_a_batch_runs_through_the_services_that_compose_starts(
    stores: Stores, database: str, tmp_path: Path
) -> None:
    port = processes.free_port()
    env = processes.environment(**stores._asdict(), poll_interval=0.2)

    def arguments(name: str) -> list[str]:
        return [argument.replace("8080", str(port)) for argument in SERVICES[name]["command"]]

    subprocess.run([processes.COMMAND, *arguments("migrate")], env=env, check=True, timeout=60)
    with db.transaction() as session:
        _, key = keys.create(
            session, Owner(accounts.create(session, "acme").id, livemode=False), name="test"
        )
    with ExitStack() as running:
        for name in ("api", "worker", "beat"):
            log = tmp_path / f"{name}.log"
            process = running.enter_context(
                processes.command(*arguments(name), log=log, env=env, executed=True)
            )
            if name == "api":
                processes.wait_until(
                    lambda: processes.answers(f"http://127.0.0.1:{port}/readyz"),
                    timeout=processes.START_TIMEOUT,
                    process=process,
                    log=log,
                )
        check = [
            argument.replace("8080", str(port))
            for argument in SERVICES["api"]["healthcheck"]["test"][1:]
        ]
        subprocess.run([sys.executable, *check[1:]], check=True, timeout=30)
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key)
        file = client.files.create(
            file=("one.jsonl", json.dumps(LINE | {"body": BODY}).encode()), purpose="batch"
        )
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        processes.wait_until(
            lambda: client.batches.retrieve(batch.id).status == "completed",
            timeout=60,
            process=process,
            log=tmp_path / "worker.log",
        )
