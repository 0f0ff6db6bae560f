"""What a run says: on the terminal, as JSON, and as the Markdown that docs/performance.md includes.

Ratios come first.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.samples import Figure, Measured, Outcome

RATIO_UNITS = ("×", "")


def number(value: float) -> str:
    """Three figures that count, thousands apart."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return (
        f"{value:.1f}"
        if abs(value) >= 100
        else f"{value:.2f}"
        if abs(value) >= 1
        else f"{value:.3g}"
    )


def shown(figure: Figure) -> str:
    if figure.unit == "×":
        return f"{number(figure.value)}×"
    return f"{number(figure.value)} {figure.unit}".rstrip()


def verdict(figure: Figure) -> str:
    return "" if figure.is_ok is None else "yes" if figure.is_ok else "NO"


def wanted(figure: Figure) -> str:
    if figure.target is None:
        return ""
    return f"{figure.target.relation} {shown(Figure('', figure.target.value, figure.unit))}"


def ordered(figures: Sequence[Figure]) -> list[Figure]:
    """Ratios and shares first, then what only holds for one machine."""
    return sorted(figures, key=lambda figure: figure.unit not in RATIO_UNITS)


def text(outcome: Outcome, *, is_judged: bool = True) -> str:
    """One scenario, for the terminal; at small sizes no target is judged."""
    lines = [f"\n{outcome.scenario}: {outcome.summary} ({outcome.seconds:.0f} s)"]
    for figure in ordered(outcome.figures):
        target = (
            f"   target {wanted(figure)}: {verdict(figure)}" if figure.target and is_judged else ""
        )
        lines.append(f"  {shown(figure):>12}  {figure.name}{target}")
    lines.append(
        f"  {'':46} {'lines':>9} {'seconds':>8} {'lines/s':>9} {'CPU µs/line':>12}  CPU s by"
        " process; peak RSS"
    )
    lines.extend(f"  {_row(measured)}" for measured in outcome.measured.values())
    lines.extend(f"  {name}: not measured, {reason}" for name, reason in outcome.missing.items())
    return "\n".join(lines)


def _row(measured: Measured) -> str:
    last = measured.samples[-1]
    cpu = " ".join(
        f"{role} {seconds:.2f}" for role, seconds in last.cpu.items() if seconds >= 0.005
    )
    peaks = " ".join(f"{role} {size / 1e6:.0f} MB" for role, size in last.peaks.items())
    return (
        f"{measured.name:46} {last.lines:9,} {measured.seconds:8.2f} {measured.rate:9,.0f}"
        f" {measured.cpu_per_line:12,.0f}  {cpu}{'; ' if peaks else ''}{peaks}"
    )


def targets(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, Figure]]:
    return (
        (outcome.scenario, figure)
        for outcome in outcomes
        for figure in outcome.figures
        if figure.target is not None
    )


def targets_text(outcomes: Sequence[Outcome]) -> str:
    rows = [
        f"  {verdict(figure):4} {wanted(figure):>12} {shown(figure):>12}   {scenario}:"
        f" {figure.name}"
        for scenario, figure in targets(outcomes)
    ]
    return (
        "\n".join(["\nTargets", f"  {'ok':4} {'target':>12} {'measured':>12}", *rows])
        if rows
        else ""
    )


def as_json(outcomes: Sequence[Outcome], *, scale: float) -> dict[str, Any]:
    return {
        "machine": machine.description(),
        "scale": scale,
        "scenarios": {
            outcome.scenario: {
                "summary": outcome.summary,
                "seconds": outcome.seconds,
                "figures": [
                    {
                        "name": figure.name,
                        "value": figure.value,
                        "unit": figure.unit,
                        "target": wanted(figure) or None,
                        "ok": figure.is_ok,
                    }
                    for figure in ordered(outcome.figures)
                ],
                "measured": {
                    name: measured.as_json() for name, measured in outcome.measured.items()
                },
                "missing": dict(outcome.missing),
            }
            for outcome in outcomes
        },
    }


def markdown(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """The parts of docs/performance.md by the name of their marker, but for the targets."""
    machine_part = f"Measured on {machine.in_words(machine.description())}."
    return {
        "machine": machine_part,
        **{outcome.scenario: _scenario_markdown(outcome) for outcome in outcomes},
    }


def targets_markdown(content: dict[str, Any]) -> str:
    """The table of targets, of results as `as_json` makes them."""
    rows = [
        f"| {figure['name']} ({scenario}) | {figure['target']} |"
        f" {shown(Figure('', figure['value'], figure['unit']))} |"
        f" {'yes' if figure['ok'] else 'NO'} |"
        for scenario, found in content["scenarios"].items()
        for figure in found["figures"]
        if figure["target"]
    ]
    return "\n".join(["| What | Target | Measured | Met |", "|---|---|---|---|", *rows])


def merged(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Published results with some scenarios measured anew; each is one run by itself."""
    return {**now, "scenarios": {**before.get("scenarios", {}), **now["scenarios"]}}


def _scenario_markdown(outcome: Outcome) -> str:
    ratios = [f"| {figure.name} | {shown(figure)} |" for figure in ordered(outcome.figures)]
    rows = [
        f"| {name} | {measured.samples[0].lines:,} | {measured.seconds:.2f} | {measured.rate:,.0f}"
        f" | {measured.cpu_per_line:,.0f} |"
        for name, measured in outcome.measured.items()
    ]
    return "\n".join(
        [
            *(["| Figure | |", "|---|---|", *ratios, ""] if ratios else []),
            "| Who | Lines | Seconds | Lines a second | CPU µs a line |",
            "|---|---|---|---|---|",
            *rows,
            *(f"\n{name}: not measured, {reason}." for name, reason in outcome.missing.items()),
        ]
    )


def publish(page: Path, parts: dict[str, str]) -> list[str]:
    """Put parts between their markers, `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`; the names
    that the page has no place for.
    """
    text_, homeless = page.read_text("utf-8"), []
    for name, part in parts.items():
        marked = re.compile(
            rf"(<!-- bench:{re.escape(name)} -->\n).*?(<!-- /bench:{re.escape(name)} -->)",
            re.DOTALL,
        )
        if not marked.search(text_):
            homeless.append(name)
        text_ = marked.sub(lambda found, part=part: f"{found[1]}{part}\n{found[2]}", text_)  # type: ignore[misc]
    page.write_text(text_, "utf-8")
    return homeless


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
