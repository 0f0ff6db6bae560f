"""`xalen-batch` whose workers do not write results: what durability costs is the difference to the
real one.

Everything else stays: claims, the guarded UPDATE of the task, the counters, the lease, the invoice
(over no results). For the benchmarks alone, hence outside the package.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

# Nothing else: the processes that read large files import this module as well.
from xalen_batch.cli.entry import main as cli


def _write_nothing(session: object, rows: Sequence[object]) -> None:
    return


def _record_nothing() -> None:
    from xalen_batch.pipeline import record

    record.insert  # noqa: B018 - an AttributeError here says that the write has another name by now
    record.insert = _write_nothing


def _start_such_workers() -> None:
    from xalen_batch.standalone import supervisor

    class Child(supervisor.Child):
        def __init__(self, name: str, command: str, data_dir: Path) -> None:
            super().__init__(name, command, data_dir)
            if command == "worker":
                self._argv = [
                    sys.executable,
                    "-X",
                    self._marker,
                    "-m",
                    "benchmarks.unrecorded",
                    "worker",
                ]

    supervisor.Child = Child  # type: ignore[misc]


def main() -> None:
    if sys.argv[1:] == ["worker"]:
        _record_nothing()
    else:
        _start_such_workers()
    cli()


if __name__ == "__main__":
    main()
