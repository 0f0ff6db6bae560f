"""The faults that the campaign injects into a running system.

Each fault is a context manager: it is active inside and healed at the end.
"""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from urllib.request import Request, urlopen

from tests.chaos.crash_points import POINTS
from tests.chaos.receiver import ANSWERS, WELL
from tests.chaos.system import WORKERS, Part, System
from tests.e2e.processes import wait_until
from tests.fault_proxy import FaultProxy

# Workers let requests in flight finish; the issue allows half a minute.
GRACE = 30.0
# A killed process is gone at once, and a busy machine takes its time.
DEATH = 10.0
BUSIEST = "the busiest worker"


@dataclass(frozen=True)
class Fault:
    """`kind` is one of KINDS; `on` is a process, a link, a crash point or a storm; `hold` is the
    duration in seconds.

    The `hold` of a crash point is the occurrence at which it fires. It is armed until then, or
    until the run is over.
    """

    kind: str
    on: str
    hold: float = 0.0

    @property
    def is_crash_point(self) -> bool:
        return self.kind == "crash point"

    def __str__(self) -> str:
        return (
            f"{self.kind}"
            f" ({self.on}{f', occurrence {self.hold:.0f}' if self.is_crash_point else f', {self.hold:.1f} s'})"
        )


@contextmanager
def killed(system: System, fault: Fault) -> Iterator[None]:
    parts = (
        [_busiest(system)]
        if fault.on == BUSIEST
        else [system.parts[name] for name in (PROCESSES if fault.on == "all" else (fault.on,))]
    )
    for part in parts:
        part.send(signal.SIGKILL)
    for part in parts:
        part.end(signal.SIGKILL, DEATH)
    try:
        yield
    finally:
        for part in parts:
            part.start()


def _busiest(system: System) -> Part:
    """The worker that holds the most tasks; one that holds none would leave nothing to recover."""
    found: list[Part] = []

    def look() -> bool:
        with system.connect() as connection:
            row = connection.execute(
                "SELECT worker FROM tasks WHERE state = 'running' AND worker IS NOT NULL GROUP BY"
                " worker ORDER BY count(*) DESC, worker"
            ).fetchone()
        found[:] = [
            part for part in system.parts.values() if row and row[0].endswith(f":{part.pid}")
        ]
        return bool(found)

    wait_until(look, timeout=GRACE)
    return found[0]


@contextmanager
def frozen(system: System, fault: Fault) -> Iterator[None]:
    part = system.parts[fault.on]
    part.send(signal.SIGSTOP)
    try:
        yield
    finally:
        part.send(signal.SIGCONT)


@contextmanager
def rolled(system: System, fault: Fault) -> Iterator[None]:
    """A rolling restart: SIGTERM to one process after the other. Each must end within its grace,
    and is started again before the next.
    """
    names = list(PROCESSES) if fault.on == "all" else [fault.on]
    for name in names:
        part = system.parts[name]
        if not part.is_running:
            continue
        try:
            part.end(signal.SIGTERM, GRACE)
        finally:
            if part.fired.exists():
                # It died at a crash point. The run notes that, and starts it again.
                part.is_wanted = True
            else:
                part.start()
    yield


@contextmanager
def valkey_emptied(system: System, fault: Fault) -> Iterator[None]:
    """Kill Valkey, and start it again without its data."""
    assert system.valkey.process is not None
    system.valkey.process.kill()
    system.valkey.process.wait()
    for left in system.valkey.folder.glob("appendonlydir"):
        shutil.rmtree(left)
    try:
        yield
    finally:
        system.valkey.start()


@contextmanager
def valkey_frozen(system: System, fault: Fault) -> Iterator[None]:
    assert system.valkey.process is not None
    system.valkey.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        system.valkey.process.send_signal(signal.SIGCONT)


@contextmanager
def postgres_stopped(system: System, fault: Fault) -> Iterator[None]:
    """`on`: SIGKILL, or SIGQUIT (PostgreSQL's immediate shutdown).

    Both leave the next start to recover from its log.
    """
    assert system.postgres.process is not None
    system.postgres.process.send_signal(signal.Signals[fault.on])
    system.postgres.process.wait()
    try:
        yield
    finally:
        system.postgres.start()


NETWORK: dict[str, Callable[[FaultProxy], None]] = {
    "reset": FaultProxy.reset,
    "refused": FaultProxy.refuse,
    "black hole": FaultProxy.black_hole,
    "500 ms": lambda proxy: proxy.delay(0.5),
    "one-byte slices": FaultProxy.slices,
    "cut": lambda proxy: proxy.cut_after(700),
}


@contextmanager
def network(system: System, fault: Fault) -> Iterator[None]:
    """`on`: `link: how`."""
    link, _, how = fault.on.partition(": ")
    NETWORK[how](system.proxies[link])
    try:
        yield
    finally:
        system.proxies[link].heal()


STORMS = {
    "429 with Retry-After": ("status=429;retry_after=1", 0.8),
    "503": ("status=503", 0.8),
    "500": ("status=500", 1.0),
    "connections reset": ("reset", 0.5),
    "truncated": ("truncate", 0.5),
    "HTML": ("html", 0.5),
    "empty": ("empty", 0.5),
    "slow": ("slow=1500", 0.5),
}


@contextmanager
def storm(system: System, fault: Fault) -> Iterator[None]:
    _storm(system, *STORMS[fault.on])
    try:
        yield
    finally:
        _storm(system, "", 0.0)


def _storm(system: System, fault: str, rate: float) -> None:
    request = Request(
        f"{system.models_address}/storm",
        json.dumps({"fault": fault, "rate": rate}).encode(),
        method="POST",
    )
    urlopen(request, timeout=10).close()


# What the receiver of webhooks may be: killed, or in one of its moods.
DOWN = "down"
MOODS = (DOWN, *(mood for mood in ANSWERS if mood != WELL))


@contextmanager
def receiver(system: System, fault: Fault) -> Iterator[None]:
    part = system.parts["receiver"]
    if fault.on == DOWN:
        part.end(signal.SIGKILL, DEATH)
    else:
        system.mood.write_text(fault.on, "utf-8")
    try:
        yield
    finally:
        system.mood.write_text(WELL, "utf-8")
        part.start()


@contextmanager
def crash_point(system: System, fault: Fault) -> Iterator[None]:
    """Every process of the point's role will die at it, once each, at most."""
    parts = [
        system.parts[name] for name in (WORKERS if POINTS[fault.on].role == "worker" else ("api",))
    ]
    for part in parts:
        # The mark of an earlier crash stays until its process is started again, since the run may
        # not have noticed the crash yet.
        part.armed.with_suffix(".new").write_text(f"{fault.on} {fault.hold:.0f}", "utf-8")
        part.armed.with_suffix(".new").rename(part.armed)
    try:
        yield
    finally:
        for part in parts:
            part.armed.unlink(missing_ok=True)


PROCESSES = ("api", *WORKERS, "beat")
KINDS: dict[str, Callable[[System, Fault], AbstractContextManager[None]]] = {
    "kill -9": killed,
    "freeze": frozen,
    "rolling restart": rolled,
    "Valkey killed, back empty": valkey_emptied,
    "Valkey frozen": valkey_frozen,
    "PostgreSQL stopped": postgres_stopped,
    "network": network,
    "storm": storm,
    "receiver": receiver,
    "crash point": crash_point,
}
