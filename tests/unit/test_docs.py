"""The pages agree with the code: every command and option parses, every setting exists."""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import plot
from benchmarks.scenarios import ALL
from tests import ROOT
from xalen_batch import catalog
from xalen_batch.broker import Job
from xalen_batch.cli.main import app
from xalen_batch.config import Settings
from xalen_batch.endpoints import operations
from xalen_batch.endpoints.form import InvalidBody
from xalen_batch.endpoints.names import RERANK
from xalen_batch.models import Base

PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("client/*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/*.md"),
        ROOT / "docker-compose.yml",
    ]
)
# Read by the command line, not by the settings.
CLIENT_VARIABLES = {"XALEN_BASE_URL", "XALEN_API_KEY", "XALEN_DEBUG", "XALEN_WEBHOOK_SECRET"}
# Variables of tests that can run for longer.
TEST_VARIABLES = {
    name
    for folder in ("integration", "e2e")
    for path in (ROOT / "tests" / folder).rglob("test_*.py")
    for name in re.findall(r'environ\.get\("(XALEN_TEST_\w+)"', path.read_text("utf-8"))
}
STATUS = re.compile(
    r"Status: accepted, 20\d\d-[01]\d-[0-3]\d"
    r"(?:; superseded(?: in part)? by \[(\d{4})\]\(\1-[\w-]+\.md\)(?:, for .+)?)?"
)
SHOWN = re.compile(r"(?:docker compose exec \w+ )?(?:\.venv/bin/)?xalen-batch (?P<arguments>.+)")


def commands() -> Iterator[tuple[str, str]]:
    """(page, arguments) of every `xalen-batch …` in a shell block of a page, or in compose's
    comments.
    """
    for page in PAGES:
        text = page.read_text("utf-8")
        shell = "\n".join(
            re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
            if page.suffix == ".md"
            else re.findall(r"^# (.*)", text, re.MULTILINE)
        )
        shell = re.sub(r" \\\n +", " ", shell)
        for command in re.split(r"\n|&&|\|", re.sub(r" #.*| [<>] \S+", "", shell)):
            if match := SHOWN.fullmatch(command.strip(" )")):
                yield page.relative_to(ROOT).as_posix(), match["arguments"]


@pytest.mark.parametrize(("page", "arguments"), list(commands()), ids=lambda value: value)
def test_a_command_that_is_shown_exists(page: str, arguments: str) -> None:
    result = CliRunner().invoke(app, [*shlex.split(arguments), "--help"])
    assert result.exit_code == 0, result.output


def test_the_readme_shows_commands() -> None:
    assert len([page for page, _ in commands() if page == "README.md"]) > 5


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.suffix == ".md"],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_a_variable_that_is_named_exists(page: Path) -> None:
    known = (
        {f"XALEN_{field.upper()}" for field in Settings.model_fields}
        | CLIENT_VARIABLES
        | TEST_VARIABLES
    )
    assert set(re.findall(r"\bXALEN_[A-Z_]+\b", page.read_text("utf-8"))) <= known


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.suffix == ".md"],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_a_verb_that_is_shown_is_in_the_makefile(page: Path) -> None:
    shown = set(
        re.findall(r"^make ([a-z]+)\b|`make ([a-z]+)\b", page.read_text("utf-8"), re.MULTILINE)
    )
    verbs = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert {verb or inline for verb, inline in shown} <= verbs


def test_the_paths_that_contributing_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    named = re.findall(r"`([\w./-]*[/.][\w./-]*)`", text) + re.findall(r"[\w.]+/[\w./]+", shell)
    paths = {path for path in named if not path.startswith((".venv/", ".tools/"))}
    assert len(paths) >= 50
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_every_page_is_reached_from_the_index() -> None:
    index = (ROOT / "docs/index.md").read_text("utf-8")
    linked = {target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", index)}
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert pages - {"index.md"} <= linked


CATALOG_PAGE = (ROOT / "docs/catalog.md").read_text("utf-8")
CATALOG_FIELDS = {
    "A model": {name: field for name, field in catalog.Model.model_fields.items() if name != "id"},
    "Its price": catalog.ListPrice.model_fields,
    "Its backend": catalog.BackendConfig.model_fields,
}


@pytest.mark.parametrize("section", CATALOG_FIELDS)
def test_the_catalog_page_has_every_field_and_its_default(section: str) -> None:
    _, _, text = CATALOG_PAGE.partition(f"## {section}\n")
    rows = dict(
        re.findall(r"^\| `(\w+)` \| .*? \| (.*?) \| ", text.partition("\n## ")[0], re.MULTILINE)
    )
    assert rows.keys() == CATALOG_FIELDS[section].keys()
    for name, field in CATALOG_FIELDS[section].items():
        told = rows[name]
        if field.is_required():
            assert told == "required", name
        elif field.default is None or isinstance(field.default, catalog.BackendConfig):
            assert told == "the ID" or told.startswith("none"), name
        else:
            assert told == f"`{json.dumps(field.default)}`", name


SERVERS = [
    "vLLM",
    "SGLang",
    "llama.cpp",
    "Ollama",
    "Text Embeddings Inference",
    "A hosted API",
    "Simulated",
]


@pytest.mark.parametrize("server", SERVERS)
def test_an_example_of_a_catalog_is_one(server: str) -> None:
    example = re.search(
        rf"^{re.escape(server)}.*:\n```toml\n((?:.*\n)*?)```", CATALOG_PAGE, re.MULTILINE
    )
    assert example is not None
    document = tomllib.loads(example[1])
    shipped = tomllib.loads((ROOT / "xalen_batch/catalog.toml").read_text("utf-8"))
    models = catalog.parse(shipped, document)
    assert all(
        models[id].backend.kind == ("simulated" if server == "Simulated" else "openai")
        for id in document["models"]
    )


def test_every_example_of_a_catalog_is_tested() -> None:
    assert CATALOG_PAGE.count("```toml\n") == len(SERVERS)


@pytest.mark.parametrize("server", ["vLLM", "Ollama", "llama.cpp", "Text Embeddings Inference"])
def test_a_model_server_has_all_that_is_typed(server: str) -> None:
    """Its start, `models add`, `backends test`, a call and a batch, all of one model."""
    page = (ROOT / "docs/model-servers.md").read_text("utf-8")
    section = re.search(rf"^## {re.escape(server)}.*\n((?:(?!## ).*\n)*)", page, re.MULTILINE)
    assert section is not None
    blocks = re.findall(r"```sh\n((?:.*\n)*?)```", section[1])
    assert blocks
    for block in blocks:
        start, added = block.split("xalen-batch models add ", 1)
        assert start
        name = re.search(r"--(?:as|model) (\S+)", added)
        assert name is not None
        assert f"xalen-batch backends test {name[1]}\n" in added
        call = re.search(r"curl \S+:8080(\S+) .*\n.* -d '(.*)'\n", added)
        assert call is not None
        line = re.search(r"echo '(.*)' > requests.jsonl\n", added)
        assert line is not None
        endpoint, body = call[1], json.loads(call[2])
        assert body["model"] == name[1]
        form = operations.fit(body, endpoint, is_reranker=endpoint == RERANK)
        assert not isinstance(form, InvalidBody)
        assert (json.loads(line[1])["url"], json.loads(line[1])["body"]) == (endpoint, body)
        assert "xalen-batch run requests.jsonl --live\n" in added


def test_the_life_of_every_table_is_stated() -> None:
    page = (ROOT / "docs" / "operating.md").read_text("utf-8")
    rows = page.partition("## What is kept, and for how long")[2].partition("\n## ")[0]
    stated = set(re.findall(r"`([a-z_]+)`", rows))
    assert {table.name for table in Base.metadata.sorted_tables} <= stated


def test_the_performance_page_has_a_place_for_each_scenario() -> None:
    page = (ROOT / "docs/performance.md").read_text("utf-8")
    places = re.findall(r"<!-- bench:([\w-]+) -->\n.*?<!-- /bench:\1 -->", page, re.DOTALL)
    assert sorted(places) == sorted(
        ["machine", "targets", *(name for name in ALL if name != "celery-pools")]
    )


@pytest.mark.parametrize("name", ["demo", "parts", "performance"])
def test_a_picture_says_the_same_on_light_and_on_dark_pages(name: str) -> None:
    light, dark = (
        re.findall(r">([^<>]+)</text>", path.read_text("utf-8"))
        for path in (plot.IMAGES / f"{name}.svg", plot.IMAGES / f"{name}-dark.svg")
    )
    assert light
    assert light == dark


def test_the_plot_shows_the_published_results() -> None:
    drawn = plot.pictures(json.loads(plot.RESULTS.read_text("utf-8")))
    assert set(drawn) == {"performance.svg", "performance-dark.svg"}
    for name, picture in drawn.items():
        assert (plot.IMAGES / name).read_text("utf-8") == picture, "run: python -m benchmarks.plot"


def test_the_reliability_page_has_a_place_for_the_campaign() -> None:
    page = (ROOT / "docs/reliability.md").read_text("utf-8")
    assert re.findall(r"<!-- bench:([\w-]+) -->\n.*?<!-- /bench:\1 -->", page, re.DOTALL) == [
        "chaos"
    ]


@pytest.mark.parametrize("page", ["logs", "operating"])
def test_events_of_a_page_are_events_of_the_code(page: str) -> None:
    code = "\n".join(path.read_text("utf-8") for path in (ROOT / "xalen_batch").rglob("*.py"))
    text = (ROOT / f"docs/{page}.md").read_text("utf-8")
    files = r"(?!md\b|env\b|yml\b|toml\b)"
    shown = set(re.findall(rf"`([a-z]+\.{files}[a-z_]+)`", text))
    assert len(shown) >= 10
    assert {event for event in shown if f'"{event}"' not in code} == set()


@pytest.mark.parametrize(
    "record", sorted(ROOT.glob("docs/decisions/*.md")), ids=lambda record: record.stem
)
def test_a_decision_has_its_number_a_status_and_a_date(record: Path) -> None:
    title, _, rest = record.read_text("utf-8").partition("\n\n")
    assert re.fullmatch(rf"# {record.name[:4]}\. .+", title)
    assert STATUS.fullmatch(rest.partition("\n\n")[0])


GLOSSARY = re.findall(
    r"^\| \*\*(.+?)\*\* \| (.+) \|$", (ROOT / "docs/glossary.md").read_text("utf-8"), re.MULTILINE
)


def test_the_glossary_is_in_alphabetical_order() -> None:
    words = [word.casefold() for word, _ in GLOSSARY]
    assert len(words) >= 80
    assert words == sorted(set(words))


def test_a_word_of_the_glossary_is_used_by_the_code() -> None:
    code = "\n".join(path.read_text("utf-8") for path in (ROOT / "xalen_batch").rglob("*.py"))
    # `fair queue` is written fair_queue and FairQueue too.
    spellings = {word: r"[\s_-]?".join(re.split(r"[ _-]", word)) for word, _ in GLOSSARY}
    assert [word for word, found in spellings.items() if not re.search(found, code, re.I)] == []


def test_a_word_of_the_glossary_has_one_sentence() -> None:
    assert [
        word for word, meaning in GLOSSARY if not re.fullmatch(r"[^.]+(?:\.\w[^.]*)*\.", meaning)
    ] == []


def test_the_names_of_code_in_the_architecture_page_exist() -> None:
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    # In code spans of the text, and in parentheses of the diagrams.
    spans = re.findall(r"`([^`\n]+)`|\(([^()\n]*)\)", page)
    named = {
        (owner, name)
        for span in spans
        for owner, name in re.findall(r"\b([A-Za-z_]+)\.(_?[a-z_]+)\b(?!/)", "".join(span))
        if name not in ("md", "py", "toml", "yml")
    }
    assert len(named) >= 30
    sources = {path: path.read_text("utf-8") for path in (ROOT / "xalen_batch").rglob("*.py")}

    def exists(owner: str, name: str) -> bool:
        """Whether a module, package or class `owner` defines `name`."""
        places = [
            text
            for path, text in sources.items()
            if owner in (path.stem, path.parent.name) or re.search(rf"^class {owner}\b", text, re.M)
        ]
        defined = rf"(?:def|class) {name}\b|^\s*(?:self\.)?{name}\s*[:=]"
        modules = {path.stem for path in sources if path.parent.name == owner}
        return name in modules or any(re.search(defined, text, re.M) for text in places)

    jobs = {tuple(job.value.split(".")) for job in Job}
    assert {span for span in named - jobs if not exists(*span)} == set()
