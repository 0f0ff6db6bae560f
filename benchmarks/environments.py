"""Packages that only a reference needs, each in an environment of its own under `.bench`, made on
first use.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / ".bench"


class Unavailable(Exception):
    """Something is not installed here; the message says what to do."""


def python_with(name: str, *requirements: str, say: Callable[[str], None]) -> Path:
    """The interpreter of the environment that has these packages.

    Unavailable where they cannot be had.
    """
    folder = OUTPUT / name
    python, uv = folder / "bin" / "python", ROOT / ".tools" / "bin" / "uv"
    if python.exists():
        return python
    if not uv.exists():
        raise Unavailable("its environment is made by `make bench`, which brings uv")
    say(f"installing {' and '.join(requirements)} in an environment of its own")
    made = folder.with_name(folder.name + ".part")
    shutil.rmtree(made, ignore_errors=True)
    commands: tuple[list[str | Path], ...] = (
        [uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, made],
        [uv, "pip", "install", "--quiet", "--python", made / "bin" / "python", *requirements],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(
                f"{' and '.join(requirements)} could not be installed: {done.stderr.strip()[-300:]}"
            )
    made.rename(folder)
    return python
