"""The README's Python runs as it is printed, with the address and the key of this system put in."""

import re
import subprocess
import sys

from tests import ROOT
from tests.e2e.processes import System, environment


def test_the_python_of_the_readme_delivers_results_and_an_invoice(running_system: System) -> None:
    # One program: the blocks share a client.
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    code = "\n".join([*blocks, "assert answer.choices[0].message.content"])
    assert code.count("http://127.0.0.1:8080/v1") == code.count("xln_test_…") == 1
    code = code.replace("http://127.0.0.1:8080/v1", running_system.base_url).replace(
        "xln_test_…", running_system.test_key
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert '"custom_id":"ticket-0300"' in result.stdout
    assert "'object': 'invoice'" in result.stdout
