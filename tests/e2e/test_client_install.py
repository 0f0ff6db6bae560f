"""The client's wheel, installed alone, needs `openai` and nothing of this repository."""

import os
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import openai
import pytest

from tests import ROOT
from tests.e2e.sdks import UV, run

USE = """
import importlib.metadata, importlib.util, sys
from xalen import XALEN, AsyncXALEN
assert importlib.util.find_spec("xalen_batch") is None
assert "site-packages" in sys.modules["xalen"].__file__
for kind in (XALEN, AsyncXALEN):
    client = kind(api_key="xln_test_a", base_url="http://127.0.0.1:1")
    for name in ("batches", "rerank", "schedules", "invoices", "statements", "estimates", "limits"):
        assert type(getattr(client, name)).__module__.startswith("xalen.")
print(importlib.metadata.version("xalen"))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(
        [UV, "build", "--quiet", "--wheel", "--python", sys.executable, "--out-dir", folder],
        cwd=ROOT / "client",
        env=_environment(),
    )
    (found,) = folder.glob("*.whl")
    return found


def test_a_wheel_has_the_client_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        fields = HeaderParser().parsestr(content.read(metadata).decode())
    assert {name.split("/")[0] for name in names} == {"xalen", "xalen-0.1.0.dist-info"}
    assert "xalen/py.typed" in names
    assert fields.get_all("Requires-Dist") == ["openai<4,>=3.54"]
    assert fields["License-Expression"] == "Apache-2.0"


def test_it_works_where_nothing_else_is_installed(wheel: Path, tmp_path: Path) -> None:
    env = _environment() | {"VIRTUAL_ENV": str(tmp_path / "alone")}
    run([UV, "venv", "--quiet", "--python", sys.executable, "alone"], cwd=tmp_path, env=env)
    locked = f"openai=={openai.__version__}"
    run([UV, "pip", "install", "--quiet", wheel, locked], cwd=tmp_path, env=env)
    ran = subprocess.run(
        [tmp_path / "alone/bin/python", "-I", "-c", USE],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ran.returncode, ran.stdout) == (0, "0.1.0\n"), ran.stderr[-3000:]


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XALEN_", "OPENAI_", "PYTHON"))
    } | {"UV_PYTHON_DOWNLOADS": "never"}
