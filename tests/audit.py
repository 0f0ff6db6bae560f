"""`make audit`: look up the locked packages, by their hashes, in the database of vulnerabilities.

The exit code is 0 if every package was found and none is known to be vulnerable, 1 if one is, and 3
(INCONCLUSIVE) if the service cannot be reached or does not know a package.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

VULNERABLE, INCONCLUSIVE = 1, 3
BIN = Path(sys.executable).parent


def main() -> int:
    ran = subprocess.run([BIN / "pip-audit", *sys.argv[1:]], capture_output=True, text=True)
    try:
        found: list[dict[str, Any]] = json.loads(ran.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = ran.stderr.strip().splitlines()[-1:] or [f"pip-audit ended with {ran.returncode}"]
        return end(
            INCONCLUSIVE,
            f"Not audited: the vulnerability service is not reachable from here. {last[0]}",
        )
    vulnerable = [(package, problem) for package in found for problem in package.get("vulns", ())]
    for package, problem in vulnerable:
        fixed = (
            f"; fixed in {', '.join(problem['fix_versions'])}"
            if problem.get("fix_versions")
            else ""
        )
        sys.stdout.write(f"{package['name']} {package['version']}: {problem['id']}{fixed}\n")
    if vulnerable:
        return end(VULNERABLE, f"{len(vulnerable)} known vulnerabilities in {len(found)} packages.")
    if skipped := [package for package in found if "skip_reason" in package]:
        return end(
            INCONCLUSIVE,
            f"Not audited: the service said nothing about {len(skipped)} of {len(found)} packages."
            f" {skipped[0]['skip_reason']}",
        )
    if not found:
        return end(INCONCLUSIVE, "Not audited: there was nothing to audit.")
    return end(0, f"{len(found)} packages, none known to be vulnerable.")


def end(code: int, words: str) -> int:
    sys.stderr.write(f"{words}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
