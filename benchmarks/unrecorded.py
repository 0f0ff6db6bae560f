"""`xalen-batch` whose workers do not write results: what durability costs is the difference to the real one.

Everything else stays: claims, the guarded UPDATE of the task, the counters, the lease, the invoice (over no
results). For the benchmarks alone, hence outside the package.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from xalen_batch import supervisor
from xalen_batch.cli.entry import main as cli


class _Child(supervisor.Child):
    def __init__(self, name: str, command: str, data_dir: Path) -> None:
        super().__init__(name, command, data_dir)
        if command == "worker":
            self._argv = [sys.executable, "-X", self._marker, "-m", "benchmarks.unrecorded", "worker"]


def _write_nothing(session: object, rows: Sequence[object]) -> None:
    return


def main() -> None:
    if sys.argv[1:] == ["worker"]:
        from xalen_batch.pipeline import record

        record.insert  # noqa: B018 - an AttributeError here says that the write has another name by now
        record.insert = _write_nothing
    else:
        supervisor.Child = _Child  # type: ignore[misc]
    cli()


if __name__ == "__main__":
    main()
