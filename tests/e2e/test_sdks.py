"""Both generations of the Python SDK, the Node SDK, the AI SDK, autobatcher, AzureOpenAI and the
anthropic package run their flows unmodified, with the server's URL and `api_key` only.

Each has a locked environment of its own beside its flow in tests/clients, made on first use.
"""

import json
import sys
from pathlib import Path

import pytest

from tests.e2e.processes import System, environment
from tests.e2e.sdks import CLIENTS, install, node, run


def python_2() -> list[Path | str]:
    return [install(CLIENTS / "openai-2"), CLIENTS / "flow.py"]


def python_3() -> list[Path | str]:
    return [sys.executable, CLIENTS / "flow.py"]


def ai_sdk() -> list[Path | str]:
    return node("ai.mjs")


def doors() -> list[Path | str]:
    return [sys.executable, CLIENTS / "doors.py"]


def autobatcher() -> list[Path | str]:
    folder = CLIENTS / "autobatcher"
    return [install(folder), folder / "flow.py"]


SDKS = {
    "python 2.": python_2,
    "python 3.": python_3,
    "node 7.": node,
    "ai 7.": ai_sdk,
    "autobatcher 0.": autobatcher,
    "anthropic 2.": doors,
}


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize("mode", ["test", "live"])
def test_an_sdk_runs_its_whole_flow(running_system: System, sdk: str, mode: str) -> None:
    key = running_system.test_key if mode == "test" else running_system.live_key
    env = environment() | {"OPENAI_BASE_URL": running_system.base_url, "OPENAI_API_KEY": key}
    summary = json.loads(run(SDKS[sdk](), cwd=CLIENTS, env=env))
    assert summary["sdk"].startswith(sdk)
    assert summary["usage"] > 0
