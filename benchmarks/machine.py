"""The machine that figures belong to, without its name or any path."""

import os
import platform
from pathlib import Path


def description() -> dict[str, str | int]:
    return {
        "cores": os.cpu_count() or 0,
        "ram_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "kernel": platform.release().split("-")[0],
        "system": platform.system(),
    }


def in_words(machine: dict[str, str | int]) -> str:
    return (
        f"{machine['cores']} cores ({machine['cpu']}), {machine['ram_gib']} GiB,"
        f" {machine['system']} {machine['kernel']}, Python {machine['python']}"
    )


def _cpu() -> str:
    try:
        found = Path("/proc/cpuinfo").read_text("utf-8", "replace").split("model name", 1)[1]
    except (OSError, IndexError):
        return platform.machine()
    return found.splitlines()[0].lstrip("\t :").strip()
