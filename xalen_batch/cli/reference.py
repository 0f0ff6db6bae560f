"""Generates the documentation's reference pages from the commands and the settings.

`python -m xalen_batch.cli.reference` writes docs/reference/; a test fails if a page is out of date.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

CONNECTION = "Connection"
PAGES = Path("docs/reference")
NOTE = "<!-- Written by `python -m xalen_batch.cli.reference`; a test compares. -->"
EXIT_CODES = """\
| Exit code | Meaning |
|---|---|
| 0 | It worked. |
| 1 | An error; one line on stderr says which. `XALEN_DEBUG=1` adds where. |
| 2 | The command was not given as its help says. |
| 3 | The batch ended with lines that did not succeed, or the awaited run was skipped. |
| 4 | No key, a key that is not accepted, or one that may not do this. |
| 5 | The time to wait was over; the batch goes on. |
| 130 | Ctrl-C; a submitted batch goes on. |"""


def commands() -> str:
    """commands.md"""
    from xalen_batch.cli.main import app

    root = typer.main.get_command(app)
    found = list(_walk(root, "xalen-batch"))
    shared: dict[str, Any] = {}
    for _, command in found:
        shared |= {param.name: param for param in command.params if _panel(param) == CONNECTION}
    parts = [
        f"# Commands\n\n{NOTE}",
        (
            "Data goes to stdout, progress and messages to stderr. `--json` prints one JSON object;"
            ' a list is `{"object": "list", "data": […], "has_more": …}`. A command that cannot do'
            " its work leaves stdout empty, with `--json` too: one line on stderr says why, and the"
            " exit code which kind of error it is. `NO_COLOR` is honoured. `xalen-batch"
            " --install-completion` teaches your shell to complete commands and options."
        ),
        EXIT_CODES,
        "## Options of every command that talks to the API\n\n" + _table(list(shared.values())),
        *(_section(path, command) for path, command in found),
    ]
    return "\n\n".join(parts) + "\n"


def _walk(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if command.hidden:
            continue
        is_group = isinstance(command, TyperGroup)
        if not is_group or getattr(command, "invoke_without_command", False):
            yield f"{path} {name}", command
        if is_group:
            yield from _walk(command, f"{path} {name}")


def _section(path: str, command: Any) -> str:
    own = [
        param
        for param in command.params
        if _panel(param) != CONNECTION and param.name != "help" and not param.hidden
    ]
    arguments = " ".join(_argument(param) for param in own if param.param_type_name == "argument")
    parts = [f"## `{f'{path} {arguments}'.strip()}`", " ".join(command.help.split())]
    if own:
        parts.append(_table(own))
    if any(_panel(param) == CONNECTION for param in command.params):
        parts.append("And the options of every command that talks to the API.")
    parts.append(f"```sh\n{_examples(command)}\n```")
    return "\n\n".join(parts)


def _table(params: list[Any]) -> str:
    rows = [f"| {_names(param)} | {_cell(param.help or '')}{_default(param)} |" for param in params]
    return "\n".join(("| Option | What it does |", "|---|---|", *rows))


def _names(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"`{param.metavar or param.name.upper()}`"
    value = "" if param.is_flag else f" {param.metavar or param.name.upper()}"
    return ", ".join(f"`{name}{value}`" for name in param.opts).replace("|", "\\|")


def _argument(param: Any) -> str:
    name = str(param.metavar or param.name.upper())
    return name if param.required else f"[{name}]"


def _default(param: Any) -> str:
    is_told = param.param_type_name == "argument" or param.is_flag or param.default is None
    return "" if is_told else f" Default: `{getattr(param.default, 'value', param.default)}`."


def _panel(param: Any) -> str | None:
    return getattr(param, "rich_help_panel", None)


def _examples(command: Any) -> str:
    lines = command.epilog.replace("\b", "").strip().splitlines()
    return "\n".join(line.removeprefix("  ") for line in lines[1:])


def settings() -> str:
    """settings.md"""
    from xalen_batch.config import Settings

    rows = [
        f"| `XALEN_{name.upper()}` | {'' if field.default in (None, ()) else f'`{field.default}`'}"
        f" | {_cell(field.description or '')} |"
        for name, field in Settings.model_fields.items()
    ]
    parts = (
        f"# Settings\n\n{NOTE}",
        (
            "Environment variables, read once when a process starts. Durations are in seconds,"
            " sizes in bytes."
        ),
        "\n".join(("| Variable | Default | What it sets |", "|---|---|---|", *rows)),
        (
            "Commands that talk to the API also read `XALEN_BASE_URL` and `XALEN_API_KEY`, else"
            " `OPENAI_BASE_URL` and `OPENAI_API_KEY` (both are ignored while the key belongs to"
            " another service), else `credentials.toml` in `XALEN_DATA_DIR`. An address and its key"
            " come from one of these pairs: a key is sent to no address that another pair names."
            " `XALEN_DEBUG=1` lets a command show where an unexpected error happened."
        ),
    )
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def write() -> None:
    PAGES.mkdir(parents=True, exist_ok=True)
    for page in (commands, settings):
        (PAGES / f"{page.__name__}.md").write_text(page(), "utf-8")


if __name__ == "__main__":
    write()
