"""`make demo`, as a machine without a terminal sees it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests import ROOT
from tests.e2e import processes

DEMO = ROOT / "examples/demo.py"


def processes_on(folder: Path) -> list[str]:
    """Command lines of processes that name a folder or have a file in it open."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            opened = [os.readlink(link) for link in (entry / "fd").iterdir()]
        except OSError:
            # It has ended, or is someone else's.
            continue
        if str(folder) in command or any(path.startswith(str(folder)) for path in opened):
            found.append(command)
    return found


def test_the_demo_delivers_results_and_invoices_and_leaves_nothing_running(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    result = subprocess.run(
        [sys.executable, DEMO, "--folder", folder],
        env=processes.environment(),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "\r" not in result.stdout
    assert "\x1b" not in result.stdout
    assert sorted(path.name for path in (folder / "results").iterdir()) == [
        "help-centre-rerank.invoice.json",
        "help-centre-rerank.results.jsonl",
        "mixed-models.errors.jsonl",
        "mixed-models.invoice.json",
        "mixed-models.results.jsonl",
        "support-tickets.invoice.json",
        "support-tickets.results.jsonl",
    ]
    for name in ("help-centre-rerank", "support-tickets", "mixed-models"):
        invoice = json.loads((folder / "results" / f"{name}.invoice.json").read_text("utf-8"))
        assert invoice["total"] in result.stdout
        assert invoice["livemode"] is True
    asked = [
        json.loads(line)["custom_id"]
        for line in (DEMO.parent / "support-tickets.jsonl").read_text("utf-8").splitlines()
    ]
    answered = (folder / "results/support-tickets.results.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["custom_id"] for line in answered] == asked
    assert processes_on(folder) == []


def test_a_demo_that_is_interrupted_leaves_nothing_running(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with (tmp_path / "out").open("wb") as out:
        demo = subprocess.Popen(
            [sys.executable, DEMO, "--folder", folder],
            env=processes.environment(),
            stdout=out,
            stderr=out,
            preexec_fn=processes.hear_ctrl_c,
        )
    started = folder / "data/logs/postgres.log"
    processes.wait_until(
        started.exists, timeout=processes.START_TIMEOUT, process=demo, log=tmp_path / "out"
    )
    demo.send_signal(signal.SIGINT)
    assert demo.wait(processes.STOP_TIMEOUT) == 130, (tmp_path / "out").read_text("utf-8")
    assert processes_on(folder) == []


def test_a_demo_that_is_killed_leaves_nothing_running(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with (tmp_path / "out").open("wb") as out:
        demo = subprocess.Popen(
            [sys.executable, DEMO, "--folder", folder],
            env=processes.environment(),
            stdout=out,
            stderr=out,
            preexec_fn=processes.hear_ctrl_c,
        )
    processes.wait_until(
        (folder / "data/credentials.toml").exists,
        timeout=processes.START_TIMEOUT,
        process=demo,
        log=tmp_path / "out",
    )
    demo.kill()
    demo.wait()
    processes.wait_until(lambda: processes_on(folder) == [], timeout=processes.STOP_TIMEOUT)
