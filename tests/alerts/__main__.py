"""`make alerts`: check the alerts for Prometheus, and make the condition of each true.

Prometheus' `promtool` runs the cases of `alerts.test.yaml`. Where it is not installed, root installs
Debian's package; others are told its name.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ALERTS = HERE.parents[1] / "examples" / "monitoring" / "alerts.yaml"
PACKAGE = "prometheus"


def main() -> int:
    if shutil.which("promtool") is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            sys.stderr.write(
                f"promtool is not installed. It is in the package {PACKAGE} of Debian and Ubuntu.\n"
            )
            return 1
        sys.stdout.write(f"Installing the package {PACKAGE}, for promtool …\n")
        apt = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "--yes", "--no-install-recommends", PACKAGE]):
            subprocess.run(["apt-get", "--quiet=2", *words], env=apt, check=True)
    for command in (["check", "rules", ALERTS], ["test", "rules", HERE / "alerts.test.yaml"]):
        ended = subprocess.run(["promtool", *command], check=False)
        if ended.returncode:
            return ended.returncode
    return 0


sys.exit(main())
