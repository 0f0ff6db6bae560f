"""The API's description, as it is served: a linter finds nothing in it, and a client generated from
it runs the whole flow.
"""

import json
import os
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.processes import System
from tests.e2e.sdks import CLIENTS, install, node, run


@pytest.fixture
def description(running_system: System, tmp_path: Path) -> Path:
    with urllib.request.urlopen(f"{running_system.address}/openapi.json") as answer:
        path = tmp_path / "openapi.json"
        path.write_bytes(answer.read())
        return path


def test_the_linter_finds_nothing(description: Path) -> None:
    *npm_node, _ = node()
    redocly = CLIENTS / "node/node_modules/@redocly/cli/bin/cli.js"
    env = os.environ | {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
    command = [
        *npm_node,
        redocly,
        "lint",
        description,
        "--extends",
        "recommended",
        "--format",
        "json",
    ]
    found = json.loads(run(command, cwd=description.parent, env=env))
    assert found["problems"] == []
    assert found["totals"] == {"errors": 0, "warnings": 0, "ignored": 0}


def test_a_generated_client_runs_the_whole_flow(
    running_system: System, description: Path, tmp_path: Path
) -> None:
    python = install(CLIENTS / "generated")
    # The generator formats what it writes with the ruff beside it.
    env = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    generator = python.parent / "openapi-python-client"
    run(
        [
            generator,
            "generate",
            "--path",
            description,
            "--output-path",
            tmp_path / "client",
            "--meta",
            "none",
        ],
        cwd=tmp_path,
        env=env,
    )
    env |= {
        "PYTHONPATH": str(tmp_path),
        "XALEN_BATCH_ADDRESS": running_system.address,
        "XALEN_BATCH_KEY": running_system.test_key,
    }
    summary = json.loads(run([python, CLIENTS / "generated/flow.py"], cwd=tmp_path, env=env))
    assert summary["batch"].startswith("batch_")
    assert float(summary["total"]) > 0
