"""The benchmarks work: a smoke at a hundredth of the size. It says nothing about speed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import ROOT

SCENARIOS = ("zero-latency", "first-result", "prefix-cache")


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_scenarios_run_are_checked_and_reported(tmp_path: Path) -> None:
    done = bench("--quick", "--no-peers", "--output", str(tmp_path), *SCENARIOS)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert tuple(found["scenarios"]) == SCENARIOS
    zero = found["scenarios"]["zero-latency"]
    ours = zero["measured"]["xalen-batch"]
    assert ours["lines"] == 500
    assert {"api", "worker-1", "worker-2", "postgres", "valkey"} <= ours["runs"][0][
        "cpu_seconds"
    ].keys()
    assert {figure["unit"] for figure in zero["figures"]} >= {"×", "µs"}
    assert zero["missing"].keys() == {
        "Celery, a task per line (gevent 100)",
        "LiteLLM 1.106.2 Router × 256",
    }
    prefixes = {
        figure["name"]: figure["value"] for figure in found["scenarios"]["prefix-cache"]["figures"]
    }
    assert prefixes["share of prompt tokens from the cache"] > 0
    for name in SCENARIOS:
        assert f"\n{name}: " in done.stdout
    assert "say nothing about speed" in done.stdout
    assert "<svg" in (tmp_path / "throughput.svg").read_text("utf-8")


def test_a_scenario_that_is_not_there_is_named() -> None:
    done = bench("zero-latancy")
    assert done.returncode == 2
    assert "no scenario is called zero-latancy" in done.stderr
