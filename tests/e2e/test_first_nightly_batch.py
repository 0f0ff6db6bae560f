"""The page "Your first nightly batch" works: its commands are run as they are printed."""

import re
import subprocess
from pathlib import Path

from tests import ROOT
from tests.e2e.processes import COMMAND, System, environment

PAGE = ROOT / "docs" / "first-nightly-batch.md"


def test_every_command_of_the_page_works(running_system: System, tmp_path: Path) -> None:
    commands = re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(commands) >= 7
    variables = environment(data_dir=running_system.data_dir)
    variables["PATH"] = f"{COMMAND.parent}:{variables['PATH']}"
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(commands)],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert '"custom_id":"summary-20' in ran.stdout
    assert '"custom_id":"export-1"' in ran.stdout
    assert 'monday.jsonl"' in ran.stdout
    assert "{{" not in (ran.stdout + (tmp_path / "searches-batch").read_text()).replace(
        "{{scheduled", ""
    )
    assert (tmp_path / "searches-batch").read_text().startswith("batch_")
