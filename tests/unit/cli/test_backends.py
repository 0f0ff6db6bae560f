"""`backends test` and `backends scan`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests import model_servers
from tests.model_servers import CHAT, imitate, listing
from xalen_batch.cli import backends
from xalen_batch.cli.main import app

MODEL = "mistral-small-3-1"


@pytest.fixture
def use(tmp_path: Path, configure: Callable[..., None]) -> Callable[[str], None]:
    def use(backend: str) -> None:
        path = tmp_path / "catalog.toml"
        path.write_text(f"[models.{MODEL}.backend]\nmax_in_flight = 4\n{backend}\n")
        configure(catalog=path)

    return use


def run(*options: str) -> Result:
    return CliRunner().invoke(app, ["backends", "test", *options])


def results_of(*options: str) -> list[dict[str, Any]]:
    return json.loads(run("--json", *options).stdout)["data"]


def test_a_server_that_works_has_figures(use: Callable[[str], None]) -> None:
    with imitate({"POST /v1/chat/completions": CHAT}) as server:
        use(f'base_url = "{server.url}/v1"\nextra_body = {{ priority = 9 }}')
        (found,) = results_of(MODEL)
        assert found["ok"]
        assert found["latency_ms"] > 0
        assert found["answers_per_second"] > 0
        assert 1 <= found["in_flight"] <= 4
        assert found["requests"] == server.count("POST /v1/chat/completions") <= 300
        # As a worker sends it.
        assert all(body["priority"] == 9 for _, _, body in server.seen)
        assert "works" in run().stdout


def test_the_first_error_is_shown_as_the_server_wrote_it(use: Callable[[str], None]) -> None:
    body = {"error": {"message": "The model `m` does not exist."}}
    with imitate({"POST /v1/chat/completions": (404, body)}) as server:
        use(f'base_url = "{server.url}/v1"')
        result = run("--no-ramp")
        assert result.exit_code == 1
        assert "does not work" in result.stdout
        assert f"404 {json.dumps(body)}" in result.stderr
        assert server.count("POST /v1/chat/completions") == 1


def test_each_of_several_servers_is_tested(use: Callable[[str], None]) -> None:
    with imitate({"POST /v1/chat/completions": CHAT}) as server:
        use(f'base_urls = ["{server.url}/v1", "http://127.0.0.1:9/v1"]')
        works, down = results_of("--no-ramp")
    assert (works["ok"], down["ok"]) == (True, False)
    assert down["error"].startswith("NotConnected")


def test_a_catalog_without_a_server_says_how_to_add_one(use: Callable[[str], None]) -> None:
    use("")
    result = run()
    assert result.exit_code == 2
    assert "`xalen-batch models add URL` adds one" in result.stderr
    assert "The catalog has no model none" in run("none").stderr


def test_scan_lists_the_servers_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        imitate(model_servers.OLLAMA) as ollama,
        imitate({}) as none,
        imitate({"GET /v1/models": listing({"id": "m"})}) as other,
    ):
        monkeypatch.setattr(backends, "USUAL_PORTS", (ollama.port, none.port, other.port))
        found = json.loads(CliRunner().invoke(app, ["backends", "scan", "--json"]).stdout)
        shown = CliRunner().invoke(app, ["backends", "scan"]).stdout
    assert [(server["kind"], server["models"]) for server in found["data"]] == [
        ("Ollama", ["llama3.2:latest", "nomic-embed-text:latest"]),
        ("OpenAI-compatible", ["m"]),
    ]
    assert "nomic-embed-text" in shown
    result = CliRunner().invoke(app, ["backends", "scan"])
    assert (result.exit_code, result.stdout) == (0, "")
