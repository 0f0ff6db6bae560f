"""The report of a campaign: a line per run, a summary, the same as JSON, and as Markdown for
docs/reliability.md.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks import machine
from tests.chaos.run import Outcome

DEFAULT_LEASE = 60.0


def line(outcome: Outcome) -> str:
    crashed = [f"crashed: {point}" for point in outcome.fired]
    return (
        f"seed {outcome.seed:5}  {'WRONG' if outcome.wrong else 'ok':5}  {outcome.lines:4} lines "
        f" {outcome.kills:2} kills  {outcome.repeated:3} answered again  recovered in"
        f" {outcome.recovery:4.1f} s  {outcome.seconds:5.1f} s in all "
        f" {'; '.join([*_short(outcome.faults), *crashed])}"
    )


def _short(faults: Sequence[str]) -> Iterator[str]:
    """Faults, with their number where there are several of a kind."""
    for fault, count in Counter(
        fault for fault in faults if not fault.startswith("crash point")
    ).items():
        yield fault if count == 1 else f"{count} × {fault}"


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures, by their names in the page."""
    given_up = Counter[str]()
    for outcome in outcomes:
        given_up.update(outcome.given_up)
    faults = sum(
        1 for outcome in outcomes for fault in outcome.faults if not fault.startswith("crash point")
    )
    fired = sum(len(outcome.fired) for outcome in outcomes)
    return {
        "runs": len(outcomes),
        "runs in which something was wrong": sum(bool(outcome.wrong) for outcome in outcomes),
        "batches": _sum(outcomes, "batches"),
        "lines": _sum(outcomes, "lines"),
        "faults": faults,
        "crashes at a named point": fired,
        "processes killed": _sum(outcomes, "kills"),
        "lines lost": _sum(outcomes, "lost"),
        "lines doubled": _sum(outcomes, "doubled"),
        "requests to the models": _sum(outcomes, "calls"),
        "answers that were paid for more than once, and billed once": _sum(outcomes, "repeated"),
        "lines given up, told so and not billed": (
            ", ".join(f"{count} {reason}" for reason, count in given_up.items()) or "0"
        ),
        "requests of clients that had to be sent again": _sum(outcomes, "unanswered"),
        "live calls": _sum(outcomes, "live_calls"),
        "live calls that a killed API answered and did not bill": _sum(outcomes, "live_lost"),
        "uploads in parts that were completed": _sum(outcomes, "uploads"),
        "retries of batches": _sum(outcomes, "retries"),
        "events that the receiver of webhooks accepted": _sum(outcomes, "events"),
        "deliveries of events that it had accepted before": _sum(outcomes, "told_again"),
        "worst recovery with a lease of 3 s, seconds": _worst(
            outcome for outcome in outcomes if outcome.lease < DEFAULT_LEASE
        ),
        "worst recovery with the default lease of 60 s, seconds": _worst(
            outcome for outcome in outcomes if outcome.lease >= DEFAULT_LEASE
        ),
    }


def _sum(outcomes: Iterable[Outcome], name: str) -> int:
    return sum(getattr(outcome, name) for outcome in outcomes)


def _worst(outcomes: Iterable[Outcome]) -> float | str:
    return max((round(outcome.recovery, 1) for outcome in outcomes), default="not run")


def by_fault(outcomes: Sequence[Outcome]) -> list[tuple[str, int, int]]:
    """(fault, its number, runs with it that had an error); crashes are listed by their points."""
    often, wrong = Counter[str](), Counter[str]()
    for outcome in outcomes:
        named = [
            *(fault for fault in outcome.faults if not fault.startswith("crash point")),
            *(f"crash: {point}" for point in outcome.fired),
        ]
        often.update(named)
        if outcome.wrong:
            wrong.update(set(named))
    return [(name, often[name], wrong[name]) for name in sorted(often)]


def text(outcomes: Sequence[Outcome]) -> str:
    figures = [f"  {_number(value):>12}  {name}" for name, value in summary(outcomes).items()]
    faults = [
        f"  {count:12,}  {name}{f'   wrong in {wrong}' if wrong else ''}"
        for name, count, wrong in by_fault(outcomes)
    ]
    return "\n".join(["", *figures, "", *faults])


def as_json(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "machine": machine.description(),
        "summary": summary(outcomes),
        "runs": [
            {
                **asdict(outcome),
                "recovery": round(outcome.recovery, 1),
                "seconds": round(outcome.seconds, 1),
            }
            for outcome in outcomes
        ],
    }


def merged(published: dict[str, Any], now: Sequence[Outcome]) -> list[Outcome]:
    """The published outcomes, with those of these seeds replaced, in the order of seeds."""
    by_seed = {run["seed"]: Outcome(**run) for run in published.get("runs", ())} | {
        outcome.seed: outcome for outcome in now
    }
    return [by_seed[seed] for seed in sorted(by_seed)]


def markdown(outcomes: Sequence[Outcome]) -> str:
    seeds = [outcome.seed for outcome in outcomes]
    figures = [f"| {name} | {_number(value)} |" for name, value in summary(outcomes).items()]
    faults = [f"| {name} | {count:,} | {wrong} |" for name, count, wrong in by_fault(outcomes)]
    return "\n".join(
        [
            (
                f"{len(seeds)} seeds from {min(seeds)} to {max(seeds)}, on"
                f" {machine.in_words(machine.description())}."
            ),
            "",
            "| What | Seen |",
            "|---|---|",
            *figures,
            "",
            "| Fault | Times | Runs with it that were wrong |",
            "|---|---|---|",
            *faults,
        ]
    )


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)
