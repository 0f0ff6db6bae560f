"""The fuzzer of the reader finds nothing in a few seconds, and finds a bug that is planted."""

import subprocess
import sys
from pathlib import Path

from tests import ROOT

# A reader with a bug that one of the seeds triggers, so that it is found without the fuzzer, too.
WITH_A_BUG = """\
from xalen_batch.validation import json_errors
reason = json_errors._reason
def broken(raw, text):
    if "Infinity" in text:
        raise KeyError(text)
    return reason(raw, text)
json_errors._reason = broken
import sys
from tests.fuzz.__main__ import main
sys.argv = ["fuzz", *sys.argv[1:]]
main()
"""
# Starts the fuzzer from a process whose peak is above the fuzzer's limit.
BEHIND_A_LARGE_PROCESS = """\
import subprocess, sys
peak = b"x" * (800 * 1024 * 1024)
sys.exit(subprocess.run([sys.executable, "-m", "tests.fuzz", *sys.argv[1:]]).returncode)
"""


def fuzz(corpus: Path, *how: str, seconds: int) -> subprocess.CompletedProcess[str]:
    # libFuzzer ends its process, so it is not ours.
    command = [sys.executable, *how, "--seconds", str(seconds), "--corpus", str(corpus)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    run = fuzz(tmp_path, "-m", "tests.fuzz", seconds=8)
    found = [path for kind in ("crash-*", "oom-*", "timeout-*") for path in tmp_path.glob(kind)]
    assert not found, (
        f"python -m tests.fuzz {found[0]}\n{run.stdout[-3000:]}\nThe input:"
        f" {found[0].read_bytes()!r}"
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert "Done" in run.stderr or "nothing found" in run.stderr


def test_the_peak_of_the_process_that_started_it_is_no_finding(tmp_path: Path) -> None:
    run = fuzz(tmp_path, "-c", BEHIND_A_LARGE_PROCESS, seconds=1)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]


def test_a_bug_is_found_and_its_input_kept(tmp_path: Path) -> None:
    run = fuzz(tmp_path, "-c", WITH_A_BUG, seconds=60)
    assert run.returncode != 0
    assert "KeyError" in run.stdout + run.stderr
    assert any(
        b"Infinity" in path.read_bytes()
        for path in [*tmp_path.glob("crash-*"), *tmp_path.glob("seeds/*")]
    )
