"""Runs a scenario: rounds in which everyone takes a turn, so that a machine that slows down slows
all alike.
"""

import time
from collections.abc import Callable

from benchmarks.environments import Unavailable
from benchmarks.samples import Measured, Outcome, Sample
from benchmarks.scenarios.scenario import Scenario
from benchmarks.stage import Stage


def run(scenario: Scenario, stage: Stage, runs: int, say: Callable[[str], None]) -> Outcome:
    """Run all rounds.

    Raises `verification.Wrong` for a wrong answer; lists contenders that are not installed.
    """
    started = time.perf_counter()
    contenders = scenario.contenders(stage)
    samples: dict[str, list[Sample]] = {}
    missing: dict[str, str] = {}
    for round_ in range(runs):
        for contender in contenders:
            if contender.name in missing or (
                contender.rounds is not None and round_ >= contender.rounds
            ):
                continue
            try:
                sample = contender.run()
            except Unavailable as reason:
                missing[contender.name] = str(reason)
                continue
            samples.setdefault(contender.name, []).append(sample)
            say(
                f"{scenario.name} {round_ + 1}/{runs}  {contender.name}: {sample.lines:,} lines in"
                f" {sample.seconds:.2f} s"
            )
    measured = {name: Measured(name, taken) for name, taken in samples.items()}
    return Outcome(
        scenario.name,
        scenario.summary,
        measured,
        list(scenario.read(measured)),
        missing,
        round(time.perf_counter() - started, 1),
    )
