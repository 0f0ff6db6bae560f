"""Help texts, examples and the reference pages agree with the commands."""

import re
import shlex
import subprocess
import sys
from typing import Any

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from tests import ROOT as REPOSITORY
from xalen_batch import __version__
from xalen_batch.cli import reference
from xalen_batch.cli.main import app

ROOT = typer.main.get_command(app)
HEAVY = (
    "celery",
    "fastapi",
    "sqlalchemy",
    "pydantic",
    "psycopg",
    "redis",
    "uvicorn",
    "pyreqwest",
    "obstore",
)


def _paths(group: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        found.append((*path, name))
        if isinstance(command, TyperGroup):
            found += _paths(command, (*path, name))
    return found


def _command(path: tuple[str, ...]) -> Any:
    command: Any = ROOT
    for name in path:
        command = command.commands[name]
    return command


def _examples() -> list[str]:
    epilogs = [ROOT.epilog, *(_command(path).epilog for path in _paths(ROOT))]
    lines = [
        line.strip()
        for epilog in epilogs
        for line in re.sub(r" \\\n +", " ", epilog or "").splitlines()
    ]
    return sorted({line for line in lines if "xalen-batch " in line})


@pytest.mark.parametrize("path", _paths(ROOT), ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert f"xalen-batch {' '.join(path)}" in result.stdout


@pytest.mark.parametrize("path", _paths(ROOT), ids=" ".join)
def test_an_example_can_be_pasted_from_a_terminal_of_80_columns(path: tuple[str, ...]) -> None:
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*path, "--help"]).stdout
    epilog = _command(path).epilog or ""
    for line in epilog.splitlines()[2:]:
        assert line in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    "path", [(), *_paths(ROOT)], ids=lambda path: " ".join(path) or "xalen-batch"
)
def test_help_writes_words_and_no_types_of_the_language(path: tuple[str, ...]) -> None:
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*path, "--help"]).stdout
    assert re.findall(r"<(?:bool|str|int|float|path|list)\b[^>]*>", shown) == []


@pytest.mark.parametrize(
    "arguments", [["-h"], ["run", "-h"], ["keys", "create", "-h"]], ids=" ".join
)
def test_h_is_help(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


def test_the_version_is_printed_as_people_ask_for_it() -> None:
    for arguments in (["--version"], ["version"]):
        assert CliRunner().invoke(app, arguments).stdout == f"{__version__}\n"


@pytest.mark.parametrize("line", _examples())
def test_every_example_is_a_command_that_parses(line: str) -> None:
    words = shlex.split(
        line.replace("$(", " ").replace(")", " ").replace("$id", "batch_1"), comments=False
    )
    for start in (index for index, word in enumerate(words) if word == "xalen-batch"):
        arguments = []
        for word in words[start + 1 :]:
            if word in ("|", "&&", ">", "<"):
                break
            arguments.append(word)
        _parse(arguments)


def _parse(arguments: list[str]) -> None:
    command: Any = ROOT
    while isinstance(command, TyperGroup) and arguments and arguments[0] in command.commands:
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if "--help" not in arguments:
        command.make_context("xalen-batch", arguments)


@pytest.mark.parametrize("page", [reference.commands, reference.settings])
def test_the_reference_pages_are_up_to_date(page: Any) -> None:
    written = REPOSITORY / reference.PAGES / f"{page.__name__}.md"
    assert written.read_text("utf-8") == page(), "run: python -m xalen_batch.cli.reference"


def test_nothing_heavy_is_imported_before_a_command_runs() -> None:
    code = (
        f"import sys, xalen_batch.cli.main; print([name for name in {HEAVY!r} if name in"
        " sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "[]"


def test_the_version_is_printed_on_stdout() -> None:
    result = CliRunner().invoke(app, ["version"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.strip().count(".") == 2


def test_an_unknown_option_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["list", "--nonsense"]).exit_code == 2
