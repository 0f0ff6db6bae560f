"""Fast starts of the product's processes: they are forks of one parent that has imported all of it.

    python -m tests.chaos.forks

Importing the product takes seconds, and the campaign starts a process every few seconds. A fork
runs the product's own command, with a session, an environment and a log of its own. The parent
reads a JSON object a line on stdin and answers each with one: `{"run": […], "env": {…}, "out":
PATH, "err": PATH}` with a process id, a process id with its exit code, or null.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.chaos import crash_points, model_server, receiver
from xalen_batch.pipeline import sweeps
from xalen_batch.standalone.processes import dying_with_parent

# Modules that the commands import when they run.
IMPORTED_EARLY = (
    "xalen_batch.cli.main",
    "xalen_batch.api.app",
    "xalen_batch.worker.process",
    "xalen_batch.migrate",
    "celery.worker.consumer",
    "celery.beat",
)


class Forks:
    """A handle of the parent process. Used by one thread; the parent ends with that thread."""

    def __init__(self, marker: str) -> None:
        self._parent = subprocess.Popen(
            # Python ignores the option; it names the installation in `ps`, and for `leftovers`.
            [sys.executable, "-X", marker, "-m", "tests.chaos.forks"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=dying_with_parent(signal.SIGKILL),
        )
        self.pid = self._parent.pid

    def start(self, arguments: list[str], env: Mapping[str, str], out: Path, err: Path) -> int:
        """Run one of `PROGRAMS` with its arguments; its process id."""
        return int(
            self._ask({"run": arguments, "env": dict(env), "out": str(out), "err": str(err)})
        )

    def exit_code(self, pid: int) -> int | None:
        """Minus the signal for one that was killed; None while it runs."""
        code: int | None = self._ask(pid)
        return code

    def close(self) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait(10)

    def _ask(self, request: object) -> Any:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(request).encode() + b"\n")
        self._parent.stdin.flush()
        return json.loads(self._parent.stdout.readline())


def command(arguments: list[str]) -> None:
    from xalen_batch.cli.main import app

    app(arguments)


PROGRAMS = {
    "xalen-batch": command,
    "crash-points": crash_points.run,
    "model-server": model_server.run,
    "receiver": receiver.run,
}


def _become(request: dict[str, Any]) -> None:
    """In the fork: set up session, environment and log as for a new process, and run."""
    os.setsid()
    if dies := dying_with_parent(signal.SIGKILL):
        dies()
    for number, path in ((1, request["out"]), (2, request["err"])):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.environ.clear()
    os.environ.update(request["env"])


def main() -> None:
    for module in IMPORTED_EARLY:
        importlib.import_module(module)
    # `leftovers` waits for a walk through the store, which otherwise begins once an hour.
    sweeps.ORPHANS.rest = 0.0
    ended: dict[int, int] = {}
    # Unbuffered: otherwise a fork would inherit requests that the parent has not handled yet.
    requests, answers = os.fdopen(os.dup(0), "rb", buffering=0), os.dup(1)
    while line := requests.readline():
        request = json.loads(line)
        if isinstance(request, int):
            if request not in ended:
                pid, status = os.waitpid(request, os.WNOHANG)
                if pid:
                    ended[pid] = os.waitstatus_to_exitcode(status)
            os.write(answers, json.dumps(ended.get(request)).encode() + b"\n")
            continue
        pid = os.fork()
        if pid == 0:
            requests.close()
            os.close(answers)
            _become(request)
            program, *arguments = request["run"]
            # Afterwards the process ends normally, at this module's last line.
            PROGRAMS[program](arguments)
            return
        os.write(answers, json.dumps(pid).encode() + b"\n")


if __name__ == "__main__":
    main()
