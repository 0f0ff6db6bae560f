"""Downloads of the command line over a connection that breaks."""

import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from tests.fault_proxy import FaultProxy
from tests.integration.conftest import Api
from tests.waiting import wait_until
from xalen_batch import ids, storage
from xalen_batch.cli import client as client_module
from xalen_batch.cli.main import app
from xalen_batch.config import MiB

SIZE = 8 * MiB
CONTENT = os.urandom(SIZE)


@pytest.fixture
def proxy(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the API that closes each connection after a third of the download."""
    monkeypatch.setattr(client_module, "PAUSES", (0.01, 0.01, 0.01))
    with FaultProxy(("127.0.0.1", api.port)) as proxy:
        proxy.cut_after(SIZE // 3)
        yield proxy


def download(api: Api, proxy: FaultProxy, file: str, target: Path) -> Result:
    given = ("--base-url", f"http://127.0.0.1:{proxy.port}/v1", "--api-key", api.key)
    return CliRunner().invoke(app, ["files", "download", file, "-o", str(target), *given])


def test_a_broken_download_goes_on_where_it_was(
    api: Api, proxy: FaultProxy, tmp_path: Path
) -> None:
    file = api.upload(CONTENT)["id"]
    with capture_logs() as events:
        result = download(api, proxy, file, tmp_path / "out.jsonl")
        # The last request is logged once its answer has left.
        wait_until(lambda: len(statuses(events)) == 4)
    assert (result.exit_code, result.stderr) == (0, "")
    assert (tmp_path / "out.jsonl").read_bytes() == CONTENT
    # Heads of answers take bytes of the proxy too. A broken request may be logged after the next.
    assert sorted(statuses(events)) == [200, 206, 206, 206]


def test_bytes_that_differ_from_the_digest_are_not_kept(
    api: Api, proxy: FaultProxy, tmp_path: Path
) -> None:
    file = api.upload(CONTENT)["id"]
    id = ids.parse("file", file)
    assert id is not None
    storage.write(storage.key(id), [CONTENT[:-1], bytes([CONTENT[-1] ^ 1])])
    result = download(api, proxy, file, tmp_path / "out.jsonl")
    assert result.exit_code == 1
    assert "do not have the SHA-256 digest that the server stated" in result.stderr
    assert list(tmp_path.iterdir()) == []


def statuses(events: list[MutableMapping[str, Any]]) -> list[int]:
    return [event["status"] for event in events if event["event"] == "api.request"]
