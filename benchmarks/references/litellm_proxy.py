"""LiteLLM's proxy over the mock server, in an environment of its own: one process, no database."""

import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

from benchmarks.lines import CHAT_MODEL
from benchmarks.system import free_port

START_TIMEOUT = 120.0
CONFIG = """
model_list:
  - model_name: {model}
    litellm_params:
      model: openai/{model}
      api_base: {model_server}
      api_key: none
"""


class Proxy(NamedTuple):
    """A running proxy. `url` ends in /v1."""

    url: str
    key: str
    pid: int


@contextmanager
def running(python: Path, model_server: str) -> Iterator[Proxy]:
    """A proxy of `model_server` (its URL ends in /v1)."""
    port, key = free_port(), f"sk-{secrets.token_hex(32)}"
    with tempfile.TemporaryDirectory(prefix="xalen-bench-") as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(CONFIG.format(model=CHAT_MODEL, model_server=model_server), "utf-8")
        program = [python, python.with_name("litellm"), "--config", config, "--telemetry", "False"]
        local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
        local["LITELLM_MASTER_KEY"] = key
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(
                [*program, "--host", "127.0.0.1", "--port", str(port)],
                cwd=folder,
                env={**os.environ, **local},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}/health/liveliness", process)
            yield Proxy(f"http://127.0.0.1:{port}/v1", key, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            with urlopen(url, timeout=2):
                return
        except (URLError, OSError):
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("LiteLLM's proxy did not start")
        time.sleep(0.2)
