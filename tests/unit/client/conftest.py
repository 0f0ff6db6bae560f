"""A stub of the API, and an environment that names no server."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.client import stub_api
from xalen.batch import outage


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[stub_api.Api]:
    # Tests wait for no retry.
    monkeypatch.setattr(outage, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(outage, "LONGEST_PAUSE", 0.001)
    with stub_api.serving() as api:
        yield api


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith(("XALEN_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
