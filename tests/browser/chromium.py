"""A Chromium or Chrome of this machine, or else one that is installed."""

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")


def path() -> str | None:
    """The path of a browser; None: Playwright's own, which this function has installed.

    CHROME names one. As root, apt installs Debian's; elsewhere Playwright downloads its own.
    """
    if "CHROME" in os.environ:
        return os.environ["CHROME"]
    found = _found()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "chromium"], check=True)
        found = _found()
    if found is None:
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=True)
    return found


def _found() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)
