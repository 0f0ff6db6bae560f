"""How fast xalen-batch is, what that costs, and what users would write instead does on the same
machine.

    python -m benchmarks                             the default set, under ten minutes on two cores
    python -m benchmarks zero-latency heavy-tail     these alone
    python -m benchmarks million                     one that the default set leaves out
    python -m benchmarks --full --runs 5             everything, more often
    python -m benchmarks --quick                     tiny sizes: does it work? Its figures mean nothing
    python -m benchmarks --publish                   and write docs/performance.md, its plot and its result file
    make bench SCENARIOS="zero-latency heavy-tail"   with what it needs installed first

Everyone runs in turn on the same mock model server. Every run is checked: all lines once, in order,
billed to the last digit. Wrong answers end it with exit 1; a missed target does not.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks import machine, plot, report, runner
from benchmarks.environments import OUTPUT, ROOT
from benchmarks.samples import Outcome
from benchmarks.scenarios import ALL
from benchmarks.stage import Stage, opened
from benchmarks.verification import Wrong

QUICK = 0.01
PAGE = ROOT / "docs" / "performance.md"
RESULTS = plot.RESULTS


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help="which; the default set if none is named"
    )
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    parser.add_argument("--full", action="store_true", help="all scenarios, also the long ones")
    parser.add_argument(
        "--runs",
        type=int,
        help=(
            "interleaved runs of each; slow references may run fewer (default: by scenario, 1 to 3)"
        ),
    )
    parser.add_argument(
        "--quick", action="store_true", help="a hundredth of the size, one run each"
    )
    parser.add_argument("--scale", type=float, default=None, help=argparse.SUPPRESS)
    parser.add_argument(
        "--no-peers",
        action="store_true",
        help="leave out Celery per line and LiteLLM, which are installed apart",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=OUTPUT / "results",
        help="folder of the result file, plot and tables",
    )
    parser.add_argument(
        "--publish",
        action="store_true",
        help=(
            "also renew these scenarios in docs/performance.md, its plot and benchmarks/results.json"
        ),
    )
    chosen = parser.parse_args(given)
    if unknown := [name for name in chosen.scenarios if name not in ALL]:
        parser.error(f"no scenario is called {', '.join(unknown)}; --list shows them")
    if chosen.publish and (chosen.quick or chosen.scale):
        parser.error("figures of small sizes are not published")
    chosen.scale = chosen.scale or (QUICK if chosen.quick else 1.0)
    return chosen


def main() -> int:
    chosen = arguments()
    if chosen.list:
        for scenario in ALL.values():
            _print(
                f"{scenario.name:14} {'' if scenario.is_default else '(long) '}{scenario.summary}"
            )
        return 0
    names = chosen.scenarios or [
        name for name, scenario in ALL.items() if scenario.is_default or chosen.full
    ]
    started = time.monotonic()
    _say(f"on {machine.in_words(machine.description())}")
    outcomes: list[Outcome] = []
    with opened(_say, scale=chosen.scale, with_peers=not chosen.no_peers) as stage:
        try:
            for name in names:
                outcomes.append(_measured(stage, name, chosen))
        except (Wrong, RuntimeError) as error:
            _say(f"WRONG: {name}: {error}")
            return 1
        except KeyboardInterrupt:
            _say("stopped")
            return 130
    if chosen.scale >= 1:
        _print(report.targets_text(outcomes))
    _print(
        f"\nOn {machine.in_words(machine.description())}; {time.monotonic() - started:.0f} s in"
        " all."
    )
    if chosen.scale < 1:
        _print(
            f"These sizes are {chosen.scale:g} of the real ones: they show that it works, and say"
            " nothing about speed."
        )
    _write(outcomes, chosen)
    return 0


def _measured(stage: Stage, name: str, chosen: argparse.Namespace) -> Outcome:
    runs = chosen.runs or (1 if chosen.scale < 1 else ALL[name].runs)
    outcome = runner.run(ALL[name], stage, runs, _say)
    _print(report.text(outcome, is_judged=chosen.scale >= 1))
    return outcome


def _write(outcomes: list[Outcome], chosen: argparse.Namespace) -> None:
    content, parts = report.as_json(outcomes, scale=chosen.scale), report.markdown(outcomes)
    folder: Path = chosen.output
    report.write_json(folder / "results.json", content)
    (folder / "throughput.svg").write_text(plot.picture(content["scenarios"], plot.LIGHT), "utf-8")
    (folder / "tables.md").write_text(
        "\n\n".join(f"## {name}\n{part}" for name, part in parts.items()) + "\n", "utf-8"
    )
    _say(f"results.json, throughput.svg and tables.md are in {folder}")
    if chosen.publish:
        published = report.merged(
            json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}, content
        )
        report.write_json(RESULTS, published)
        plot.write(published)
        for homeless in report.publish(
            PAGE, {**parts, "targets": report.targets_markdown(published)}
        ):
            _say(f"{PAGE.name} has no place for {homeless}")


def _say(words: str) -> None:
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()


def _print(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
