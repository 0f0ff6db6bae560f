"""`models add` against each kind of server, imitated; `models show`."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests import model_servers
from tests.model_servers import CHAT, Routes, imitate, listing
from xalen_batch import catalog
from xalen_batch.cli.main import app
from xalen_batch.cli.model_servers import entry

PRICES = "input=0.03,output=0.09"


@pytest.fixture
def file(tmp_path: Path, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The catalog file of a data folder, where nothing runs."""
    monkeypatch.delenv("XALEN_DATABASE_URL", raising=False)
    configure(data_dir=tmp_path / "data")
    return tmp_path / "data/catalog.toml"


def add(url: str, *options: str, price: str | None = PRICES) -> Result:
    asked = ["models", "add", url, "--yes", "--no-ramp", *options]
    return CliRunner().invoke(app, [*asked, *(["--price", price] if price else [])])


def added(url: str, *options: str, price: str | None = PRICES) -> dict[str, Any]:
    result = add(url, *options, "--json", price=price)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("routes", "path", "options", "server", "name", "fields", "backend"),
    [
        (
            model_servers.VLLM,
            "/v1",
            [],
            ("vLLM", "0.12.0"),
            "qwen3-8b",
            {"context_window": 32768, "owned_by": "Qwen", "name": "Qwen3-8B"},
            {"base_url": "/v1", "model": "Qwen/Qwen3-8B"},
        ),
        (
            # Without the /v1.
            model_servers.VLLM,
            "",
            ["--as", "mine"],
            ("vLLM", "0.12.0"),
            "mine",
            {"context_window": 32768},
            {"base_url": "/v1"},
        ),
        (
            model_servers.SGLANG,
            "/v1",
            [],
            ("SGLang", "0.5.5"),
            "llama-3.1-8b",
            {"context_window": 131072},
            {"max_in_flight": 192},
        ),
        (
            model_servers.LLAMA_CPP,
            "/v1",
            [],
            ("llama.cpp", "b6970"),
            "gemma-3-4b-it.q4_k_m",
            {"context_window": 8192, "parameters": "3.9B"},
            {"max_in_flight": 6},
        ),
        (
            model_servers.OLLAMA,
            "",
            ["--model", "llama3.2"],
            ("Ollama", "0.12.10"),
            "llama3.2",
            {"context_window": 4096, "parameters": "3.2B"},
            {"base_url": "/v1", "model": "llama3.2:latest"},
        ),
        (
            model_servers.LM_STUDIO,
            "/v1",
            [],
            ("LM Studio", None),
            "qwen2.5-7b-instruct",
            {"context_window": 8192, "owned_by": "lmstudio-community"},
            {"base_url": "/v1"},
        ),
        (
            model_servers.OTHER,
            "/v1",
            [],
            ("OpenAI-compatible", None),
            "gpt-x",
            {"context_window": 16000, "owned_by": "someone"},
            {"max_in_flight": 64},
        ),
    ],
)
def test_a_chat_model_of_each_kind_of_server(
    file: Path,
    routes: Routes,
    path: str,
    options: list[str],
    server: tuple[str, str | None],
    name: str,
    fields: dict[str, Any],
    backend: dict[str, Any],
) -> None:
    with imitate(routes) as imitated:
        found = added(imitated.url + path, *options)
        # A tiny request each, and two for the latency.
        assert imitated.count("POST /v1/chat/completions") == 3
    assert (found["server"]["kind"], found["server"]["version"]) == server
    assert found["model"] == name
    assert "/v1/chat/completions" in found["entry"]["endpoints"]
    for field, value in fields.items():
        assert found["entry"][field] == value
    for field, value in backend.items():
        wanted = imitated.url + value if field == "base_url" else value
        assert found["entry"]["backend"][field] == wanted
    written = catalog.read(file)[name]
    assert str(written.price.input) == "0.03"
    assert written.backend.kind == "openai"


@pytest.mark.parametrize(
    ("routes", "path", "api", "base_url"),
    [
        (model_servers.VLLM_RERANKER, "/v1", "jina", "/v1"),
        (model_servers.TEI_RERANKER, "", "tei", ""),
        (model_servers.TEI_RERANKER, "/v1", "tei", ""),
    ],
)
def test_a_reranker_has_its_shape_and_its_address(
    file: Path, routes: Routes, path: str, api: str, base_url: str
) -> None:
    with imitate(routes) as imitated:
        found = added(f"{imitated.url}{path}", "--as", "ranker", price="input=0.01")
    model = catalog.read(file)["ranker"]
    assert model.is_reranker
    assert (model.backend.rerank_api, model.backend.urls) == (api, (imitated.url + base_url,))
    assert model.context_window == 8192
    assert found["entry"]["price"] == {"input": "0.01"}


def test_the_cohere_shape_is_known_by_its_meta(file: Path) -> None:
    ranking = {
        "results": [{"index": 0, "relevance_score": 0.9}],
        "meta": {"billed_units": {"search_units": 1}},
    }
    routes = {"GET /v2/models": listing({"id": "rerank-v3.5"}), "POST /v2/rerank": ranking}
    with imitate(routes) as imitated:
        added(f"{imitated.url}/v2", "--context-window", "4096", price="input=1")
    assert catalog.read(file)["rerank-v3.5"].backend.rerank_api == "cohere"


def test_an_embedding_model_of_tei_is_found_with_its_endpoint(file: Path) -> None:
    with imitate(model_servers.TEI_EMBEDDING) as imitated:
        found = added(imitated.url, price="input=0.01")
    assert found["entry"]["endpoints"] == ["/v1/embeddings"]
    assert found["entry"]["category"] == "embedding"
    model = catalog.read(file)["multilingual-e5-small"]
    assert (model.context_window, model.backend.max_inputs) == (512, 8)


def test_responses_are_translated_where_the_server_lacks_them(file: Path) -> None:
    for routes, name, has_responses in (
        (model_servers.VLLM, "qwen3-8b", True),
        (model_servers.SGLANG, "llama-3.1-8b", False),
    ):
        with imitate(routes) as imitated:
            added(f"{imitated.url}/v1")
        model = catalog.read(file)[name]
        assert model.endpoints == ("/v1/chat/completions", "/v1/responses", "/v1/completions")
        assert model.backend.has_responses is has_responses


def test_without_a_price_nothing_is_written(file: Path) -> None:
    with imitate(model_servers.VLLM) as imitated:
        result = add(f"{imitated.url}/v1", price=None)
        assert result.exit_code == 2
        assert "The price of input and output tokens is missing: --price" in result.stderr
        assert "a price of 0 is free" in result.stderr
        result = add(f"{imitated.url}/v1", price="input=0.1")
        assert "The price of output tokens is missing" in result.stderr
    assert not file.exists()


@pytest.mark.parametrize("price", ["0.02", "input=free", "input=-1", "input=1e-3"])
def test_a_price_that_cannot_be_read_is_named(file: Path, price: str) -> None:
    result = add("http://127.0.0.1:9/v1", price=price)
    assert result.exit_code == 2
    assert f"--price {price}: a price looks like input=0.02,output=0.04" in result.stderr


def test_a_model_that_ships_keeps_its_price_and_description(file: Path) -> None:
    routes = {
        **model_servers.VLLM,
        "GET /v1/models": listing(
            {
                "id": "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
                "owned_by": "vllm",
                "max_model_len": 32768,
            }
        ),
    }
    with imitate(routes) as imitated:
        found = added(f"{imitated.url}/v1", "--as", "mistral-small-3-1", price=None)
    assert "price" not in found["entry"]
    assert "name" not in found["entry"]
    assert "model" not in found["entry"]["backend"]
    model = catalog.read(file)["mistral-small-3-1"]
    assert (model.context_window, str(model.price.input)) == (32768, "0.02")


def test_the_users_file_keeps_its_comments_and_its_other_models(file: Path) -> None:
    file.parent.mkdir()
    text = (
        "# Our servers.\n[models.mistral-small-3-1.backend]  # the big one\n"
        'base_url = "http://10.0.0.1:8000/v1"   # vLLM\n'
    )
    file.write_text(text)
    file.chmod(0o640)
    with imitate(model_servers.VLLM) as imitated:
        added(f"{imitated.url}/v1")
    assert file.read_text().startswith(text)
    assert file.stat().st_mode & 0o777 == 0o640
    assert catalog.read(file)["qwen3-8b"].backend.urls == (f"{imitated.url}/v1",)
    assert catalog.read(file)["mistral-small-3-1"].backend.urls == ("http://10.0.0.1:8000/v1",)
    assert [path.name for path in file.parent.iterdir()] == ["catalog.toml"]


def test_a_backend_that_is_there_is_replaced_only_if_asked(file: Path) -> None:
    with imitate(model_servers.VLLM) as imitated:
        added(f"{imitated.url}/v1")
        again = add(f"{imitated.url}/v1", price="input=1,output=2")
        assert again.exit_code == 2
        assert "has a backend of qwen3-8b already" in again.stderr
        added(f"{imitated.url}/v1", "--replace", price="input=1,output=2")
    assert str(catalog.read(file)["qwen3-8b"].price.input) == "1"


def test_a_server_with_several_models_is_listed(file: Path) -> None:
    with imitate(model_servers.OLLAMA) as imitated:
        result = add(imitated.url)
        assert result.exit_code == 2
        words = "Ollama has 2 models. Name one with --model: llama3.2:latest, nomic-embed-text"
        assert words in result.stderr
        result = add(imitated.url, "--model", "gpt-none")
        assert "does not have gpt-none. It has llama3.2:latest" in result.stderr


def test_a_key_is_sent_and_its_variable_written(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with imitate(model_servers.VLLM, key="sk-1") as imitated:
        url = f"{imitated.url}/v1"
        assert "asks for a key: 401" in add(url).stderr
        assert "SOME_KEY is not set" in add(url, "--api-key-env", "SOME_KEY").stderr
        monkeypatch.setenv("SOME_KEY", "sk-2")
        assert "refuses the key in SOME_KEY: 401" in add(url, "--api-key-env", "SOME_KEY").stderr
        monkeypatch.setenv("SOME_KEY", "sk-1")
        added(url, "--api-key-env", "SOME_KEY")
    assert catalog.read(file)["qwen3-8b"].backend.api_key_env == "SOME_KEY"
    assert "sk-1" not in file.read_text()


def test_errors_are_shown_as_the_server_wrote_them(file: Path) -> None:
    routes = {
        "GET /v1/models": listing({"id": "m", "max_model_len": 100}),
        "POST /v1/chat/completions": (500, {"error": "CUDA out of memory"}),
    }
    with imitate(routes) as imitated:
        result = add(f"{imitated.url}/v1")
    assert result.exit_code == 1
    assert '/v1/chat/completions it says: 500 {"error": "CUDA out of memory"}' in result.stderr
    assert "cannot be reached" in add(f"{imitated.url}/v1").stderr


def test_what_is_no_model_server_is_refused(file: Path) -> None:
    with imitate({"GET /": {"hello": "world"}}) as imitated:
        result = add(imitated.url)
    assert 'answers, and lists no models: 404 {"detail": "Not Found"}' in result.stderr
    assert "is no address" in add("localhost:8000").stderr


def test_an_unknown_context_has_to_be_given(file: Path) -> None:
    routes = {"GET /v1/models": listing({"id": "m"}), "POST /v1/chat/completions": CHAT}
    with imitate(routes) as imitated:
        result = add(f"{imitated.url}/v1")
        assert result.exit_code == 2
        assert "--context-window 8192" in result.stderr
        added(f"{imitated.url}/v1", "--context-window", "2048")
    assert catalog.read(file)["m"].context_window == 2048


def test_without_yes_and_a_terminal_nothing_is_asked_of_the_server(file: Path) -> None:
    with imitate(model_servers.VLLM) as imitated:
        result = CliRunner().invoke(app, ["models", "add", imitated.url, "--price", PRICES])
        assert result.exit_code == 2
        assert "Run it again with --yes" in result.stderr
        assert not imitated.seen


def test_a_broken_file_is_left_alone(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("[models.")
    with imitate(model_servers.VLLM) as imitated:
        result = add(f"{imitated.url}/v1")
    assert "cannot be read, and was not changed" in result.stderr
    assert file.read_text() == "[models."


def test_the_ramp_proposes_what_brings_more_answers(file: Path) -> None:
    with imitate(model_servers.VLLM) as imitated:
        result = CliRunner().invoke(
            app, ["models", "add", f"{imitated.url}/v1", "--yes", "--price", PRICES]
        )
    assert result.exit_code == 0, result.output
    assert "for at most 15 s and 600 requests (--no-ramp leaves it out)" in result.stderr
    assert "at a time gave" in result.stderr
    assert imitated.count("POST /v1/chat/completions") <= 601
    assert catalog.read(file)["qwen3-8b"].backend.max_in_flight >= 2


def test_show_hides_secrets(file: Path) -> None:
    file.parent.mkdir()
    file.write_text(
        "[models.mistral-small-3-1.backend]\n"
        'base_url = "https://user:secret-1@host/v1"\n'
        'headers = { X-Token = "secret-2", X-Other = { env = "OTHER" } }\n'
    )
    for options in ([], ["--json"]):
        result = CliRunner().invoke(app, ["models", "show", "mistral-small-3-1", *options])
        assert result.exit_code == 0
        assert "secret-" not in result.output
        assert "https://host/v1" in result.output
        assert "X-Token" in result.output
        assert "OTHER" in result.output
    assert CliRunner().invoke(app, ["models", "show", "none"]).exit_code == 2


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen3-8B", "qwen3-8b"),
        ("/models/gemma.Q4_K_M.gguf", "gemma.q4_k_m"),
        ("llama3.2:latest", "llama3.2"),
        ("mistral-small3.1:24b", "mistral-small3.1:24b"),
    ],
)
def test_the_name_is_made_from_the_servers(model: str, name: str) -> None:
    assert entry.name_of(model) == name


def test_a_name_with_a_dot_is_one_table(tmp_path: Path) -> None:
    path = tmp_path / "catalog.toml"
    entry.write(path, "a.b:c", {"context_window": 1})
    assert tomllib.loads(path.read_text()) == {"models": {"a.b:c": {"context_window": 1}}}
