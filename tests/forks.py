"""Fast starts of the product's processes: forks of one parent that has imported the product.

    python -m tests.forks DESCRIPTOR PADDING

Importing the product takes a second of CPU, and the tests start hundreds of processes. A fork runs
the command that it was asked for as a new process would: with a session, an environment, standard
streams and a command line (`ps`) of its own. Its id is a process id like any other. It dies with
its parent.

A fork that is `xalen-batch up` has a fork server of its own, as its child, for the parts that it
starts: they die with it, as its real children do.

The parent reads requests on a socket that is file descriptor DESCRIPTOR: JSON, with the three
streams, a socket for the answers and the other descriptors of the fork as ancillary data. It
answers each with the fork's process id, and with its exit code when it has ended.
"""

import atexit
import ctypes
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from tests import ROOT
from xalen_batch.standalone.processes import dying_with_parent

# Modules that the commands import when they run.
IMPORTED_EARLY = (
    "xalen_batch.cli.main",
    "xalen_batch.api.app",
    "xalen_batch.worker.process",
    "xalen_batch.migrate",
    "xalen_batch.standalone.supervisor",
    "xalen_batch.backends.simulated.server",
    "celery.worker.consumer",
    "celery.beat",
)
# The argument PADDING: a fork's command line is written over the parent's.
TITLE_SIZE = 4000
# Bytes of a request, and its descriptors.
MOST_BYTES, MOST_DESCRIPTORS = 200_000, 16
# Descriptors are kept from here on, so that the numbers that forks ask for are free.
HIGH = 200

# On other systems, processes are started anew.
ARE_POSSIBLE = sys.platform == "linux"


class Fork:
    """A process, with the methods of `subprocess.Popen`. Used by one thread at a time."""

    def __init__(self, args: Sequence[str], answers: socket.socket) -> None:
        self.args = args
        self.returncode: int | None = None
        self._answers = answers
        self._received = b""
        self.pid = self._answer(None) or 0

    def poll(self) -> int | None:
        """The exit code, minus the signal for a process that was killed; None while it runs."""
        if self.returncode is None:
            self.returncode = self._answer(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; subprocess.TimeoutExpired if it still runs after `timeout` seconds."""
        if self.returncode is None:
            self.returncode = self._answer(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _answer(self, timeout: float | None) -> int | None:
        """The next number of the parent; None if there is none within `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._received:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._answers], [], [], left)[0]:
                return None
            read = self._answers.recv(100)
            if not read:
                raise RuntimeError(f"the fork server ended before {self.args}")
            self._received += read
        number, _, self._received = self._received.partition(b"\n")
        return int(number)


class Server:
    """A handle of the parent process, which ends when this one closes the socket or ends."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control

    def close(self) -> None:
        """End the parent, and with it all forks."""
        self._control.close()

    def start(
        self,
        args: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        cwd: Path | str | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.DEVNULL,
        stderr: int | IO[bytes] = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
        start_new_session: bool = False,
        preexec_fn: object = None,
    ) -> Fork:
        """Run `xalen-batch …`, `python -m …` or `python -c …`, with the arguments of Popen.

        `preexec_fn` is not called: every fork dies with its parent.
        """
        words = [str(arg) for arg in args]
        request = {
            "args": words,
            "env": dict(env),
            "cwd": str(cwd or Path.cwd()),
            "session": start_new_session,
            "numbers": list(pass_fds),
        }
        with ExitStack() as opened:
            nothing = opened.enter_context(open(os.devnull, "r+b", buffering=0))
            streams = [
                nothing if stream == subprocess.DEVNULL else stream
                for stream in (stdin, stdout, stderr)
            ]
            answers, theirs = socket.socketpair()
            opened.callback(theirs.close)
            socket.send_fds(
                self._control,
                [json.dumps(request).encode()],
                [
                    *(each if isinstance(each, int) else each.fileno() for each in streams),
                    theirs.fileno(),
                    *pass_fds,
                ],
            )
        return Fork(words, answers)

    def run(
        self,
        args: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        cwd: Path | str | None = None,
        input: bytes = b"",
        timeout: float = 240,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end: its exit code and what it wrote."""
        with (
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            given.write(input)
            given.seek(0)
            fork = self.start(args, env=env, cwd=cwd, stdin=given, stdout=out, stderr=err)
            try:
                code = fork.wait(timeout)
            except subprocess.TimeoutExpired:
                fork.kill()
                raise
            for written in (out, err):
                written.seek(0)
            return subprocess.CompletedProcess(fork.args, code, out.read(), err.read())


@cache
def server() -> Server:
    """The fork server of this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        parent = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", str(theirs.fileno()), "-" * TITLE_SIZE],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    found = Server(ours)

    def close() -> None:
        found.close()
        parent.wait(10)

    atexit.register(close)
    return found


def serve(control: socket.socket) -> dict[str, Any]:
    """Fork for each request. Returns in the forks alone, with their request; ends the parent."""
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for ready in select.select([control, *running], [], [])[0]:
            if ready is not control:
                pid, answers = running.pop(ready)
                os.close(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with answers:
                    _tell(answers, code)
                continue
            message, descriptors, _, _ = socket.recv_fds(control, MOST_BYTES, MOST_DESCRIPTORS)
            if not message:
                os._exit(0)
            request = json.loads(message)
            told = descriptors.pop(3)
            answers = socket.socket(fileno=fcntl.fcntl(told, fcntl.F_DUPFD_CLOEXEC, HIGH))
            os.close(told)
            pid = os.fork()
            if pid == 0:
                control.close()
                for descriptor, (_, other) in running.items():
                    os.close(descriptor)
                    other.close()
                _become(request, descriptors)
                # Told when all is set up, as Popen returns when the program was executed.
                with answers:
                    _tell(answers, os.getpid())
                return request
            for descriptor in descriptors:
                os.close(descriptor)
            running[os.pidfd_open(pid)] = pid, answers


def _tell(answers: socket.socket, number: int) -> None:
    # The process that asked may have ended, or have forgotten this fork.
    with suppress(OSError):
        answers.sendall(b"%d\n" % number)


def _become(request: dict[str, Any], descriptors: Sequence[int]) -> None:
    """In the fork: set up what a new process would have."""
    _die_with_parent()
    if request["session"]:
        os.setsid()
    moved = [fcntl.fcntl(each, fcntl.F_DUPFD, HIGH) for each in descriptors]
    for each in descriptors:
        os.close(each)
    for here, number in zip(moved, (0, 1, 2, *request["numbers"]), strict=True):
        os.dup2(here, number)
        os.close(here)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    words = request["args"]
    _name(*(words if words[0] == sys.executable else [sys.executable, *words]))


def _die_with_parent() -> None:
    if dies := dying_with_parent(signal.SIGKILL):
        dies()


def _name(*words: str) -> None:
    """Write the command line that `ps` shows and /proc has: a string in the place of the words.

    The kernel takes it for one if the last byte of that place is not zero, as setproctitle(3) does.
    """
    stat = Path("/proc/self/stat").read_text("ascii").rpartition(")")[2].split()
    start, end = int(stat[45]), int(stat[46])
    title = " ".join(words).encode()[: end - start - 2]
    ctypes.memmove(start, title.ljust(end - start - 1, b"\0") + b"-", end - start)


def _fork_parts() -> dict[str, Any] | None:
    """Give `up` a fork server for its parts; in those, their request, otherwise None."""
    from xalen_batch.standalone import supervisor

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        _die_with_parent()
        os.setsid()
        _name(sys.executable, "-m", "tests.forks")
        return serve(theirs)
    theirs.close()
    supervisor.subprocess = types.SimpleNamespace(
        Popen=Server(ours).start, DEVNULL=subprocess.DEVNULL
    )  # type: ignore[assignment]
    return None


def _run(args: Sequence[str]) -> None:
    """Run the command line in this process; it may return or raise SystemExit."""
    program, *words = args
    if program != sys.executable:
        sys.argv = list(args)
        _main_module(program)
        from xalen_batch.cli import entry

        sys.exit(entry.main())
    while words[0] == "-X":
        del words[:2]
    how, what, *rest = words
    sys.argv = [what if how == "-m" else how, *rest]
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), _main_module(None).__dict__)


def _main_module(path: str | None) -> types.ModuleType:
    """A new `__main__`, which the processes of `multiprocessing` run first."""
    module = types.ModuleType("__main__")
    if path:
        module.__file__ = path
    sys.modules["__main__"] = module
    return module


def main() -> None:
    for module in IMPORTED_EARLY:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    request: dict[str, Any] | None = serve(socket.socket(fileno=int(sys.argv[1])))
    while request is not None:
        args = request["args"]
        is_up = args[1:2] == ["up"]
        request = _fork_parts() if is_up else None
    # Afterwards the process ends normally, at this module's last line.
    _run(args)


if __name__ == "__main__":
    main()
