"""`python -m tests`: its output and exit code for tests that fail always, once or never."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

SUITE = """\
import pathlib, pytest

def fails_once(name):
    seen = pathlib.Path(name)
    is_first = not seen.exists()
    seen.touch()
    return is_first

def test_good():
    pass

@pytest.mark.timing
def test_timed():
    assert not ({once} and fails_once("timed"))

def test_other():
    assert not {always}
"""


def run(folder: Path, *arguments: str, once: bool = False, always: bool = False) -> tuple[int, str]:
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = timing: by the wall clock\n")
    (folder / "test_suite.py").write_text(SUITE.format(once=once, always=always))
    ran = subprocess.run(
        [sys.executable, "-m", "tests", *arguments],
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_ADDOPTS": "-p xdist",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    return ran.returncode, ran.stdout


def test_tests_that_pass_run_once(tmp_path: Path) -> None:
    code, out = run(tmp_path)
    assert code == 0
    assert "2 passed" in out
    assert "1 passed, 2 deselected" in out
    assert "FLAKY" not in out


@pytest.mark.parametrize(("arguments", "expected"), [([], 0), (["--strict"], 1)])
def test_a_test_that_passes_only_on_its_second_run_is_named(
    tmp_path: Path, arguments: list[str], expected: int
) -> None:
    code, out = run(tmp_path, *arguments, once=True)
    assert code == expected
    assert "FLAKY test_suite.py::test_timed: failed in the whole run, passed alone\n" in out


def test_a_test_that_fails_twice_fails_the_run_and_is_not_flaky(tmp_path: Path) -> None:
    code, out = run(tmp_path, always=True)
    assert code == 1
    assert "FLAKY" not in out
