"""The llama.cpp server as the harness uses it: installed, started, stopped."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import environments

VERSION = "2026.10.11549"
PACKAGES = (f"xllamacpp=={VERSION}", "gguf==0.19.0", "numpy>=2")
SERVER = Path(__file__).with_name("server.py")


@contextmanager
def running(say: Callable[[str], None]) -> Iterator[str]:
    """A new server, with nothing in its cache; its base URL, which ends in /v1."""
    python = environments.python_with(f"llama-{VERSION}", *PACKAGES, say=say)
    process = subprocess.Popen(
        [python, SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError("the llama.cpp server did not start")
        yield address
    finally:
        process.stdin.close()
        process.wait(60)
