"""The whole suite, as `make test` runs it.

    python -m tests [--strict] [PYTEST ARGUMENT ...]

1. All tests but those marked `timing`, in two processes per core: tests wait half of the time.
2. The tests marked `timing`, one after the other: they compare with the wall clock.
3. The tests that failed, once more and alone.

A test that passes only in step 3 is flaky. Its name is printed behind the word FLAKY, and with
`--strict` the exit code is 1. Otherwise the exit code is 0 if every test passed in the end.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

LAST_FAILED = Path(".pytest_cache/v/cache/lastfailed")
# Each process starts a PostgreSQL and a Valkey of its own.
MOST_PROCESSES = 8
NO_TESTS = 5
# Python and pytest keep what they compile: otherwise each of their processes would compile every
# test file and each module that has changed, for seconds of CPU.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}


def pytest(*arguments: str) -> int:
    """Run pytest; its exit code, where it is about tests. Anything else ends this program too."""
    code = subprocess.run([sys.executable, "-m", "pytest", *arguments], env=ENVIRONMENT).returncode
    if code not in (0, 1, NO_TESTS):
        sys.exit(code)
    return code


def failed() -> set[str]:
    """The names of the tests that failed when they last ran."""
    return set(json.loads(LAST_FAILED.read_text("utf-8"))) if LAST_FAILED.exists() else set()


def main() -> int:
    arguments = sys.argv[1:]
    is_strict = "--strict" in arguments
    chosen = [argument for argument in arguments if argument != "--strict"]
    processes = min(2 * (os.cpu_count() or 1), MOST_PROCESSES)
    in_parallel = ["-n", str(processes), "--dist", "worksteal"]
    first = pytest("--cache-clear", "-m", "not timing", *in_parallel, *chosen)
    timed = pytest("-m", "timing", *chosen)
    if 1 not in (first, timed):
        return 0
    before = failed()
    again = pytest("--last-failed", "--last-failed-no-failures", "none", *chosen)
    flaky = before - failed()
    for name in sorted(flaky):
        sys.stdout.write(f"FLAKY {name}: failed in the whole run, passed alone\n")
    return 1 if again == 1 or (flaky and is_strict) or not before else 0


if __name__ == "__main__":
    sys.exit(main())
