"""Runs one after the other, on one system for as long as that is well."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.chaos.forks import ROOT
from tests.chaos.plan import plan
from tests.chaos.run import Outcome, Run
from tests.chaos.system import SHORT, System

# What failing seeds leave, for whoever looks into them.
KEPT = ROOT / ".chaos"
# A system makes way for a new one after so many runs, and is looked at when it stops.
RUNS_OF_A_SYSTEM = 25


class Campaign:
    """`with Campaign() as campaign: campaign.run(17)`."""

    def __init__(self, say: Callable[[str], None] = lambda words: None) -> None:
        self._say = say
        self._system: System | None = None
        self._runs = 0

    def __enter__(self) -> "Campaign":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, seed: int) -> Outcome:
        """Its outcome; where something is wrong the logs are kept, and the next run gets a new system."""
        if self._runs >= RUNS_OF_A_SYSTEM:
            self._stop()
        system = self._system or self._start()
        self._runs += 1
        outcome = Run(system, plan(seed)).run()
        if not outcome.is_good:
            self._keep(system, outcome)
            self._stop()
        return outcome

    def _start(self) -> System:
        folder = Path(tempfile.mkdtemp(prefix="xalen-chaos-"))
        self._system = System(folder, SHORT).__enter__()
        self._runs = 0
        return self._system

    def _stop(self) -> None:
        system, self._system = self._system, None
        if system is None:
            return
        try:
            system.__exit__()
            left = system.processes()
            assert not left, f"processes are left: {left}"
        finally:
            shutil.rmtree(system.folder, ignore_errors=True)

    def _keep(self, system: System, outcome: Outcome) -> None:
        kept = KEPT / f"seed-{outcome.seed}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(system.folder / "logs", kept)
        shutil.copy(system.calls, kept)
        words = [*outcome.wrong, "", *(str(fault) for fault in plan(outcome.seed).faults)]
        (kept / "outcome.txt").write_text("\n".join(words) + "\n", "utf-8")


def advice(outcome: Outcome) -> str:
    """What to do about a run in which something was wrong."""
    wrong = "\n".join(f"  {words}" for words in outcome.wrong)
    return f"seed {outcome.seed}:\n{wrong}\nreplay it with: make chaos SEED={outcome.seed} RUNS=1\nits logs are in {KEPT.name}/seed-{outcome.seed}"
