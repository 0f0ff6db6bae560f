"""What processes cost: CPU seconds and peak memory, from /proc (Linux)."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
# Field numbers of /proc/PID/stat behind the command's name.
_PARENT, _USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM = 1, 11, 12, 13, 14


def cpu_seconds(pid: int, *, with_ended_children: bool = False) -> float:
    """User and system time of all threads that a process has or had; 0 for one that is gone.

    with_ended_children: and that of the children it has waited for, such as PostgreSQL's sessions.
    """
    fields = _stat(pid)
    wanted = (
        (_USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM)
        if with_ended_children
        else (_USER, _SYSTEM)
    )
    return sum(int(fields[number]) for number in wanted) / TICKS if fields else 0.0


def tree(pid: int) -> list[int]:
    """A process and all below it that run now."""
    children: dict[int, list[int]] = {}
    for other, parent in _parents():
        children.setdefault(parent, []).append(other)
    found, rest = [], [pid]
    while rest:
        found.append(rest.pop())
        rest.extend(children.get(found[-1], []))
    return found


def tree_cpu_seconds(pid: int) -> float:
    """CPU seconds of a process, all below it, and those below it that have ended."""
    return sum(cpu_seconds(member, with_ended_children=True) for member in tree(pid))


def used_since(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """CPU seconds by role between two readings."""
    return {role: round(seconds - before.get(role, 0.0), 3) for role, seconds in after.items()}


def reset_peak_memory(pid: int) -> None:
    """Let the kernel count the peak anew from what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", "ascii")


def peak_memory(pid: int) -> int:
    """Most bytes that were resident at a time since the start or the reset."""
    for line in Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _parents() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))):
            yield int(name), int(fields[_PARENT])


def _stat(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    return []
