"""Test whether a fault on one machine loses a line, bills one twice, or stops the system for good.

    make chaos                    500 runs, from seed 1
    make chaos SEED=17 RUNS=1     the run of seed 17 again
    make chaos RUNS=60 PUBLISH=1  and write docs/reliability.md

Each run drives batches through the SDK, while processes and stores are killed, frozen, cut off and
emptied as its seed decides. At its end an oracle checks the outcome. The exit code is 1 if the
oracle found an error in any run.
"""

import argparse
import json
import sys
import time

from benchmarks.report import publish, write_json
from tests import ROOT
from tests.chaos import report
from tests.chaos.campaign import KEPT, Campaign, advice
from tests.chaos.run import Outcome

PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "tests" / "chaos" / "results.json"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=1, help="the first seed (default: 1)")
    parser.add_argument(
        "--runs", type=int, default=500, help="how many seeds from there on (default: 500)"
    )
    parser.add_argument(
        "--publish",
        action="store_true",
        help=(
            "also renew these seeds in tests/chaos/results.json, and the figures in"
            " docs/reliability.md"
        ),
    )
    return parser.parse_args(given)


def main() -> int:
    chosen = arguments()
    outcomes: list[Outcome] = []
    started = time.monotonic()
    with Campaign() as campaign:
        try:
            for seed in range(chosen.seed, chosen.seed + chosen.runs):
                outcomes.append(campaign.run(seed))
                _print(report.line(outcomes[-1]))
                if outcomes[-1].wrong:
                    _print(advice(outcomes[-1]))
                # After each run, so that a campaign that is stopped has written its results.
                write_json(KEPT / "results.json", report.as_json(outcomes))
        except KeyboardInterrupt:
            _print("stopped")
    if outcomes:
        _print(report.text(outcomes))
        _print(f"\n{time.monotonic() - started:.0f} s. All of it is in {KEPT.name}/results.json.")
        if chosen.publish:
            published = report.merged(
                json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}, outcomes
            )
            publish(PAGE, {"chaos": report.markdown(published)})
            write_json(RESULTS, report.as_json(published))
    return int(any(outcome.wrong for outcome in outcomes) or len(outcomes) < chosen.runs)


def _print(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
