"""Runs one after the other; a system is used again until a run finds an error on it."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests import ROOT
from tests.chaos.plan import plan
from tests.chaos.run import Outcome, Run
from tests.chaos.system import System

# The logs of failed seeds.
KEPT = ROOT / ".chaos"
# A system is replaced after this number of runs, and checked when it stops.
RUNS_OF_A_SYSTEM = 25


class Campaign:
    """`with Campaign() as campaign: campaign.run(17)`."""

    def __init__(self) -> None:
        self._system: System | None = None
        self._runs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, seed: int) -> Outcome:
        """Return the outcome of a run. After an error the logs are kept, and the next run gets a
        new system.
        """
        chosen = plan(seed)
        system = self.system(chosen.settings)
        outcome = Run(system, chosen).run()
        if outcome.wrong:
            self._keep(system, outcome)
            self._stop()
        return outcome

    def system(self, settings: Mapping[str, object]) -> System:
        """Return a system with these settings that is ready for a run."""
        if self._runs >= RUNS_OF_A_SYSTEM or (
            self._system is not None and self._system.settings != settings
        ):
            self._stop()
        self._runs += 1
        return self._system or self._start(settings)

    def _start(self, settings: Mapping[str, object]) -> System:
        self._system = System(Path(tempfile.mkdtemp(prefix="xalen-chaos-")), settings).__enter__()
        self._runs = 1
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
    """How to repeat a run in which the oracle found an error, and where its logs are."""
    wrong = "\n".join(f"  {words}" for words in outcome.wrong)
    return (
        f"seed {outcome.seed}:\n{wrong}\nreplay it with: make chaos SEED={outcome.seed} RUNS=1\nits"
        f" logs are in {KEPT.name}/seed-{outcome.seed}"
    )
