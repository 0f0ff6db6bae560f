"""The plot: throughput by contender as bars on a logarithmic scale, as SVG, with nothing to
install.
"""

import math
from collections.abc import Sequence
from html import escape

from benchmarks.samples import Outcome

WIDTH, LEFT, ROW, TITLE = 860, 330, 22, 34
BARS = WIDTH - LEFT - 110
OURS, OTHER, INK, PAPER = "#d9480f", "#868e96", "#212529", "#ffffff"


def bars(outcomes: Sequence[Outcome]) -> str:
    """One group of bars for each scenario that compares at least two."""
    groups = [outcome for outcome in outcomes if len(outcome.measured) > 1]
    rates = [measured.rate for outcome in groups for measured in outcome.measured.values()] or [1.0]
    low, high = math.floor(math.log10(min(rates))), math.ceil(math.log10(max(rates) * 1.01))
    shapes, y = [], 20
    for outcome in groups:
        y += TITLE
        shapes.append(_text(20, y - 10, f"{outcome.scenario}: {outcome.summary}", weight="bold"))
        for name, measured in sorted(outcome.measured.items(), key=lambda pair: -pair[1].rate):
            length = BARS * (math.log10(measured.rate) - low) / max(1, high - low)
            colour = OURS if name.startswith("xalen-batch") else OTHER
            shapes.append(_text(LEFT - 8, y + 11, name, anchor="end"))
            shapes.append(
                f'<rect x="{LEFT}" y="{y}" width="{max(1.0, length):.1f}" height="{ROW - 6}"'
                f' fill="{colour}"/>'
            )
            shapes.append(_text(LEFT + length + 6, y + 11, f"{measured.rate:,.0f}"))
            y += ROW
    height = y + 40
    note = _text(
        20,
        height - 14,
        "Lines a second, logarithmic; medians of interleaved runs on the same mock server.",
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
        f' height="{height}" font-family="system-ui, sans-serif" font-size="12" role="img"'
        f' aria-label="Throughput by contender">\n<rect width="{WIDTH}" height="{height}"'
        f' fill="{PAPER}"/>\n' + "\n".join([*shapes, note]) + "\n</svg>\n"
    )


def _text(x: float, y: float, words: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" fill="{INK}" text-anchor="{anchor}"'
        f' font-weight="{weight}">{escape(words)}</text>'
    )
