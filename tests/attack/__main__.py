"""Test whether one caller, tenant or model server can stop the system or make others wait.

    make attack                             every attack, at the size that was reported
    make attack ATTACKS="estimates"         one of them
    python -m tests.attack --small          as CI runs them, within seconds each
    python -m tests.attack --checkout DIR   the same against another checkout with a .venv, to compare before and after

Prints each figure with its bound. The exit code is 1 if a figure exceeds its bound.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.attack import attacks
from tests.attack.system import Figure, Size


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m tests.attack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(attacks.names())} (default: all)"
    )
    parser.add_argument("--small", action="store_true", help="with as little as shows the bound")
    parser.add_argument(
        "--checkout", type=Path, metavar="DIR", help="attack the system of this checkout"
    )
    chosen = parser.parse_args(given)
    if unknown := sorted(set(chosen.names) - set(attacks.names())):
        parser.error(
            f"there is no attack {', '.join(unknown)}; choose from {', '.join(attacks.names())}"
        )
    return chosen


def main() -> int:
    chosen = arguments()
    size = Size.SMALL if chosen.small else Size.FULL
    broken = 0
    for name in chosen.names or attacks.names():
        _print(f"\n{name}: {attacks.purpose(name)}")
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="xalen-attack-") as folder:
            for figure in attacks.run(name, Path(folder), size, checkout=chosen.checkout):
                broken += not figure.holds
                _print(_line(figure))
        _print(f"  ({time.monotonic() - begun:.0f} s)")
    _print(
        f"\n{broken} figures are over their bounds."
        if broken
        else "\nEvery figure is within its bound."
    )
    return int(broken > 0)


def _line(figure: Figure) -> str:
    return (
        f"  {'ok  ' if figure.holds else 'OVER'} {figure.name}: {figure.value:,.6g} (at most"
        f" {figure.bound:,.6g})"
    )


def _print(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
