"""Rules of the code that a machine can check."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests import ROOT
from xalen_batch.broker import Job

PACKAGE = ROOT / "xalen_batch"
SOURCES = {
    path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(text) for name, text in SOURCES.items()}
CLIENT = ROOT / "client/xalen"
CLIENT_SOURCES = {
    path.relative_to(CLIENT).as_posix(): path.read_text("utf-8")
    for path in sorted(CLIENT.rglob("*.py"))
}
EVERY = SOURCES | {f"client/xalen/{name}": text for name, text in CLIENT_SOURCES.items()}
LONGEST_FILE = 450
STATUS = ("status", "state")

# Where requests are fanned out or bytes stream in; everything else is plain `def`.
ASYNC_ROOMS = (
    "backends/",
    "worker/",
    "ratelimit/",
    "api/http/",
    "api/receive.py",
    "api/uploads.py",
    "api/anthropic/intake.py",
    "api/inbox.py",
    "api/live/",
    "console/assets.py",
    "console/new_batch.py",
    "console/routes.py",
    # A probe must not wait for a thread.
    "api/health.py",
)


def imports(tree: ast.Module) -> Iterator[str]:
    """Modules that a file imports, `from a import b` as `a` and `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # None in `from . import b`.
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def files_where(holds: str) -> set[str]:
    """Files with a line that the pattern matches."""
    return {name for name, text in SOURCES.items() if re.search(holds, text, re.MULTILINE)}


def test_only_the_edge_commits() -> None:
    assert files_where(r"\.commit\(") <= {"db.py"}


def status_writes(name: str) -> Iterator[int]:
    """Lines that assign an attribute `status` or `state`, or give one to an UPDATE's `values`."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Assign):
            # `self.status` outside models/ is an error's or an answer's, not a row's.
            attributes = [
                target
                for target in node.targets
                if isinstance(target, ast.Attribute) and target.attr in STATUS
            ]
            yield from (
                target.lineno for target in attributes if getattr(target.value, "id", "") != "self"
            )
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "values"
        ):
            keys: list[object] = [keyword.arg for keyword in node.keywords]
            keys += [
                key.value
                for table in node.args
                if isinstance(table, ast.Dict)
                for key in table.keys
                if isinstance(key, ast.Constant)
            ]
            yield from (node.lineno for key in keys if key in STATUS)


@pytest.mark.parametrize("name", [name for name in SOURCES if not name.startswith("models/")])
def test_only_models_write_a_status(name: str) -> None:
    assert list(status_writes(name)) == []


def test_a_status_is_never_written_in_plain_sql_outside_models() -> None:
    written = files_where(r"(?i)\bSET\s+(?:\w+\s*=[^,\n]*,\s*)*(?:status|state)\s*=")
    assert {name for name in written if not name.startswith("models/")} == set()


LOG_CALLS = ("debug", "info", "warning", "error", "critical", "exception")


def logged(name: str) -> Iterator[tuple[int, str]]:
    """The values of the fields of each log call of a file, with their lines."""
    for node in ast.walk(TREES[name]):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in LOG_CALLS
        ):
            yield from (
                (keyword.value.lineno, ast.unparse(keyword.value)) for keyword in node.keywords
            )


def test_a_log_call_leaves_the_rendering_of_ids_to_the_log() -> None:
    # `x.hex`, `str(x.id)`: digits that no user has seen.
    spelled = re.compile(r"\.hex\b|\bstr\([\w.]+_id\)|ids\.render")
    assert [
        f"{name}:{line}"
        for name in SOURCES
        for line, value in logged(name)
        if spelled.search(value)
    ] == []
    # Fields that are gathered before the call.
    assert [
        f"{name}: {found}"
        for name in SOURCES
        for found in re.findall(r'"\w+_id": [\w.]+\.hex', SOURCES[name])
    ] == []


def test_every_job_has_exactly_one_body() -> None:
    named = re.findall(
        r"@app\.task\(name=Job\.(\w+)\.value, shared=False\)", SOURCES["worker/tasks.py"]
    )
    assert sorted(named) == sorted(job.name for job in Job)


def test_nobody_imports_the_tasks_but_the_worker() -> None:
    importers = {
        name for name in SOURCES if "xalen_batch.worker.tasks" in set(imports(TREES[name]))
    }
    assert {
        name for name in importers if name != "worker/process.py" and not name.startswith("cli/")
    } == set()


def test_nobody_imports_the_tests_or_the_examples() -> None:
    assert not [
        name
        for name in SOURCES
        for module in imports(TREES[name])
        if module.split(".")[0] in ("tests", "examples")
    ]


def own_tests(name: str) -> list[Path]:
    """Where the tests of a module are, if they have a file of its name."""
    module = Path(name)
    stem = module.parent.name if module.stem == "__init__" else module.stem
    return [
        ROOT / "tests" / kind / module.parent / f"test_{stem}.py"
        for kind in ("unit", "integration")
    ]


def test_every_module_has_a_test_file_of_its_name_or_a_row_in_the_tests_readme() -> None:
    rows = re.findall(
        r"^\| (`.+`) \| (`.+`) \|$", (ROOT / "tests/README.md").read_text("utf-8"), re.M
    )
    patterns = [pattern for modules, _ in rows for pattern in re.findall("`(.+?)`", modules)]
    tests = {test for _, files in rows for test in re.findall("`(.+?)`", files)}
    assert {test for test in tests if not (ROOT / "tests" / test).exists()} == set()
    elsewhere = {
        name
        for name, tree in TREES.items()
        # A package without code of its own has nothing to test.
        if any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)
        and not any(path.exists() for path in own_tests(name))
    }
    listed = {name for name in elsewhere if any(fnmatch(name, pattern) for pattern in patterns)}
    assert elsewhere - listed == set()
    idle = {
        pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in elsewhere)
    }
    assert idle == set()


# Modules of the client without a unit test of their name, and the tests that cover them.
CLIENT_TESTS = {
    "_errors.py": "unit/client/resources/test_batches.py",
    "batch/options.py": "unit/client/resources/test_batches.py",
    "batch/outage.py": "unit/client/batch/test_watch.py",
    "batch/results.py": "unit/client/resources/test_batches.py",
    "resources/estimates.py": "e2e/test_client.py",
    "resources/limits.py": "e2e/test_client.py",
    "resources/schedules.py": "e2e/test_client.py",
    "resources/statements.py": "e2e/test_client.py",
    "resources/webhooks.py": "e2e/test_webhooks.py",
}


def test_every_module_of_the_client_has_its_tests() -> None:
    assert all((ROOT / "tests" / test).exists() for test in CLIENT_TESTS.values())
    without = set()
    for name, text in CLIENT_SOURCES.items():
        module = Path(name)
        own = f"unit/client/{module.parent}/test_{module.stem.removeprefix('_')}.py"
        has_code = any(
            isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.parse(text).body
        )
        # The types have one test together: it compares them with the server's schemas.
        if has_code and module.parts[0] != "types" and not (ROOT / "tests" / own).exists():
            without.add(name)
    assert without == CLIENT_TESTS.keys()


def test_the_client_imports_one_private_name_of_openai() -> None:
    """The type of asynchronous lists, for type checkers alone: `openai` exports no name for it."""
    private = {
        (name, module)
        for name, text in CLIENT_SOURCES.items()
        for module in imports(ast.parse(text))
        if module.startswith("openai") and "._" in module
    }
    assert private == {
        ("resources/batches.py", "openai._base_client"),
        ("resources/batches.py", "openai._base_client.AsyncPaginator"),
        ("resources/invoices.py", "openai._base_client"),
        ("resources/invoices.py", "openai._base_client.AsyncPaginator"),
        ("resources/schedules.py", "openai._base_client"),
        ("resources/schedules.py", "openai._base_client.AsyncPaginator"),
        ("resources/webhooks.py", "openai._base_client"),
        ("resources/webhooks.py", "openai._base_client.AsyncPaginator"),
    }


def test_nobody_imports_a_test_file() -> None:
    # Skip tests/clients: its environments hold thousands of files.
    folders = [
        path for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "clients"
    ]
    paths = [
        *(ROOT / "tests").glob("*.py"),
        *(path for folder in folders for path in folder.rglob("*.py")),
    ]
    # Compare with file names: a function may be named `test_…` too.
    tests = {path.stem for path in paths if path.stem.startswith("test_")}
    imported = {
        path.relative_to(ROOT).as_posix(): set(imports(ast.parse(path.read_text("utf-8"))))
        for path in sorted(paths)
    }
    assert [
        (name, module)
        for name, modules in imported.items()
        for module in sorted(modules)
        if module.rpartition(".")[2] in tests
    ] == []


@pytest.mark.parametrize("name", EVERY)
def test_a_file_stays_small(name: str) -> None:
    assert len(EVERY[name].splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("name", [name for name in SOURCES if not name.startswith(ASYNC_ROOMS)])
def test_the_code_is_of_one_colour(name: str) -> None:
    assert [
        node.name for node in ast.walk(TREES[name]) if isinstance(node, ast.AsyncFunctionDef)
    ] == []


def test_names_say_what_is_in_a_file() -> None:
    vague = {"utils", "helpers", "common", "manager", "misc", "util", "helper"}
    assert not [name for name in EVERY if vague & set(Path(name).with_suffix("").parts)]


def test_layers_hold() -> None:
    result = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]


PROSE = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("client/*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/*.md"),
    ]
)


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_name_no_machine(path: Path) -> None:
    found = re.findall(r"(?<![\w.`])/(?:work|root|home|Users|tmp)/\S*", path.read_text("utf-8"))
    assert found == []


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
    targets = [
        target.split("#")[0]
        for target in re.findall(r"\]\(([^)\s]+)\)", text)
        if "://" not in target
    ]
    assert [target for target in targets if target and not (path.parent / target).exists()] == []
