"""Forks behave as the processes that they stand for: what the other tests of processes rely on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forks
from tests.e2e import processes
from tests.waiting import wait_until

TOLD = """
import json, os, random, signal, sys
from xalen_batch.config import settings
print(json.dumps({
    "args": sys.argv, "cwd": os.getcwd(), "env": dict(os.environ), "read": sys.stdin.read(),
    "sid": os.getsid(0), "pid": os.getpid(), "random": random.random(),
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],
    "sigint": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "sigterm": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
    "lease": settings().lease,
    "line": open("/proc/self/cmdline").read().rstrip("\\0").replace("\\0", " "),
}))
sys.stderr.write("err")
sys.exit(3)
"""
SLEEP = "import time; time.sleep(600)"
# It starts a child, which names itself, and ends when its stdin is closed.
PARENT = """
import os, sys, time
from tests import forks
child = forks.server().start([sys.executable, "-c", "import time; time.sleep(600)"], env={})
print(child.pid, flush=True)
sys.stdin.read()
os._exit(0)
"""

pytestmark = pytest.mark.usefixtures("_forks")


@pytest.fixture
def _forks() -> None:
    assert forks.ARE_POSSIBLE


def test_a_fork_has_what_a_new_process_has(tmp_path: Path) -> None:
    env = {"XALEN_LEASE": "17", "PATH": os.environ["PATH"]}
    args = [sys.executable, "-c", TOLD, "first", "second"]
    how = {"args": args, "env": env, "cwd": tmp_path, "input": b"given"}
    fork = forks.server().run(**how)  # type: ignore[arg-type]
    new = subprocess.run(capture_output=True, **how)  # type: ignore[call-overload]
    assert (fork.returncode, fork.stderr) == (new.returncode, new.stderr) == (3, b"err")
    ours, theirs = json.loads(fork.stdout), json.loads(new.stdout)
    for name in ("args", "cwd", "read", "descriptors", "sigint", "sigterm", "lease"):
        assert ours[name] == theirs[name], name
    # Python adds the locale that it chose.
    assert ours["env"] == {name: theirs["env"][name] for name in env}
    assert ours["line"].split() == theirs["line"].split()
    again = json.loads(forks.server().run(**how).stdout)  # type: ignore[arg-type]
    assert again["random"] != ours["random"]


def test_a_command_is_run_as_its_script_runs_it() -> None:
    for arguments in (["version"], ["nonsense"], ["models", "--help"]):
        fork = processes.run(*arguments, env=processes.environment())
        new = processes.run(*arguments, env=processes.environment(), executed=True)
        assert (fork.returncode, fork.stdout, fork.stderr) == (
            new.returncode,
            new.stdout,
            new.stderr,
        )


def test_signals_end_it_and_its_exit_code_is_theirs(tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with (tmp_path / "log").open("ab") as log:
            fork = processes.start([sys.executable, "-c", SLEEP], log=log, env={})
        assert fork.poll() is None
        assert os.getsid(fork.pid) == fork.pid
        with pytest.raises(subprocess.TimeoutExpired):
            fork.wait(0.01)
        fork.send_signal(number)
        assert fork.wait(10) == fork.poll() == -number


def test_forks_die_with_the_process_that_asked_for_them() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdin
        assert parent.stdout
        child = int(parent.stdout.readline())
        assert SLEEP in Path(f"/proc/{child}/cmdline").read_text()
        parent.stdin.close()
        parent.wait(30)
    wait_until(lambda: not Path(f"/proc/{child}").exists())
