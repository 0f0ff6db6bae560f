"""The attacks: modules of `tests/attack` with a function `attack`; each gets its own system."""

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from tests.attack import system
from tests.attack.system import Figure, Size

FRAME = frozenset({"__init__", "__main__", "attacks", "system"})


def names() -> list[str]:
    """Every attack, in alphabetical order, as it is named on the command line."""
    return sorted(
        path.stem.replace("_", "-")
        for path in Path(__file__).parent.glob("*.py")
        if path.stem not in FRAME
    )


def purpose(name: str) -> str:
    """The first sentence of an attack's docstring."""
    return (inspect.getdoc(_module(name)) or "").partition("\n\n")[0].replace("\n", " ")


def run(name: str, folder: Path, size: Size, *, checkout: Path | None = None) -> Iterator[Figure]:
    """Start a system in the folder, attack it, and yield each figure as it is measured."""
    module = _module(name)
    with system.running(
        folder, settings=module.SETTINGS, catalog=module.CATALOG, checkout=checkout
    ) as attacked:
        yield from module.attack(attacked, size)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"tests.attack.{name.replace('-', '_')}")
