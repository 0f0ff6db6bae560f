"""The plot of docs/performance.md, as SVG for light and for dark pages, with nothing to install.

Above, a linear comparison with what users would pick instead: lines a second, and CPU per line.
Below, other scenarios as small multiples. `python -m benchmarks.plot` draws it again from
benchmarks/results.json.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
IMAGES = ROOT / "docs" / "images"

Json = Mapping[str, Any]

HEADLINE = "zero-latency"
# What a user would pick, by its name in the results, and by its name in the plot.
PICKS = {
    "xalen-batch": "xalen-batch",
    "aiohttp loop, 2 processes": "aiohttp, 2 processes, stores nothing",
    "aiohttp to a JSONL file": "aiohttp to a JSONL file",
    "cookbook script": "OpenAI cookbook script",
    "Celery, a task per line (gevent 100)": "Celery, a task per line",
    "LiteLLM 1.106.2 Router × 256": "LiteLLM Router",
}
CEILING = "bare loop, our HTTP client, 2 processes"


class Panel(NamedTuple):
    """One small multiple: its scenario and title, and names of contenders by their names in it."""

    scenario: str
    title: str
    names: Mapping[str, str]


AGAINST = "aiohttp loop, 2 processes"
PANELS = (
    Panel("latency-120", "Answers after 120 ms", PICKS | {AGAINST: "aiohttp, 2 processes"}),
    Panel(
        "latency-30",
        "Answers after 30 ms",
        {"xalen-batch": "xalen-batch", AGAINST: "aiohttp, 2 processes", CEILING: "ceiling"},
    ),
    Panel(
        "heavy-tail",
        "A heavy tail of latencies",
        {
            "xalen-batch": "xalen-batch",
            "one slot per worker": "one slot a worker",
            CEILING: "ceiling",
        },
    ),
    Panel(
        "long-prompts",
        "Lines of 10 KB",
        {"xalen-batch": "xalen-batch", AGAINST: "aiohttp, 2 processes"},
    ),
    Panel(
        "zero-latency",
        "No latency, and the ceiling",
        {
            "xalen-batch": "xalen-batch",
            "bare loop, pyreqwest": "pyreqwest loop",
            CEILING: "ceiling",
        },
    ),
    Panel(
        "workers",
        "Worker processes",
        {"1 worker process": "xalen-batch, 1", "2 worker processes": "xalen-batch, 2"},
    ),
)


class Colours(NamedTuple):
    ours: str
    other: str
    ceiling: str
    ink: str
    faint: str
    paper: str


LIGHT = Colours("#d9480f", "#868e96", "#ced4da", "#212529", "#5c636a", "#ffffff")
DARK = Colours("#ff922b", "#6e7681", "#3d444d", "#e6edf3", "#9198a1", "#0d1117")
# In pixels: of the whole, of the headline's names, bars and rows, and of the small multiples.
WIDTH, MARGIN = 880, 20
NAMES, BAR, GAP, ROW = 250, 215, 90, 26
ACROSS, SMALL_ROW, SMALL_NAMES, SMALL_BAR = 3, 19, 128, 84


def pictures(results: Json) -> dict[str, str]:
    """The SVG of each file in docs/images that the results have all figures for."""
    scenarios = results["scenarios"]
    if not {HEADLINE, *(panel.scenario for panel in PANELS)} <= scenarios.keys():
        return {}
    return {
        "performance.svg": picture(scenarios, LIGHT),
        "performance-dark.svg": picture(scenarios, DARK),
    }


def picture(scenarios: Json, colours: Colours) -> str:
    """The headline and the small multiples, as far as the scenarios were measured."""
    shapes, y = [], MARGIN
    if HEADLINE in scenarios:
        drawn, y = _headline(scenarios[HEADLINE]["measured"], colours)
        shapes += drawn
    panels = [panel for panel in PANELS if panel.scenario in scenarios]
    for start in range(0, len(panels), ACROSS):
        row = panels[start : start + ACROSS]
        for index, panel in enumerate(row):
            x = MARGIN + index * (WIDTH - MARGIN) // ACROSS
            shapes += _panel(panel, scenarios[panel.scenario]["measured"], x, y, colours)
        y += 44 + SMALL_ROW * max(len(panel.names) for panel in row)
    notes = (
        "Lines a second below, each panel on its own linear scale. Ceiling: a bare loop with our"
        " HTTP client that stores nothing.",
        "Medians of interleaved runs against one mock server; upload, validation, billing and"
        " invoice of xalen-batch are included.",
    )
    for note in notes:
        shapes.append(_text(MARGIN, y + 6, note, colours.faint, size=11))
        y += 16
    height = y + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
        f' height="{height}" font-family="system-ui, sans-serif" font-size="13" role="img"'
        ' aria-label="Lines a second and CPU per line, by contender">\n'
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="{colours.paper}"/>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


def _headline(measured: Json, colours: Colours) -> tuple[list[str], int]:
    """Both comparisons beside each other, and where the next shape goes."""
    lines = measured["xalen-batch"]["lines"]
    rates, costs = MARGIN + NAMES, MARGIN + NAMES + BAR + GAP
    shapes = [
        _text(
            MARGIN, 34, f"{lines:,} lines, a server that answers at once", colours.ink, "bold", 16
        ),
        _text(rates, 62, "Lines a second: more is better", colours.faint),
        _text(costs, 62, "CPU per line, µs: less is better", colours.faint),
    ]
    found = {name: measured[key] for key, name in PICKS.items() if key in measured}
    fastest = max(each["lines_per_second"] for each in found.values())
    dearest = max(each["cpu_us_per_line"] for each in found.values())
    y = 74
    for name, each in found.items():
        weight = "bold" if name == "xalen-batch" else "normal"
        shapes.append(_text(rates - 10, y + 14, name, colours.ink, weight, anchor="end"))
        for x, value, most in (
            (rates, each["lines_per_second"], fastest),
            (costs, each["cpu_us_per_line"], dearest),
        ):
            shapes += _bar(
                x, y, BAR * value / most, ROW - 8, value, _colour(name, colours), colours
            )
        y += ROW
    return shapes, y + 20


def _panel(panel: Panel, measured: Json, x: int, y: int, colours: Colours) -> Iterator[str]:
    yield _text(x, y + 12, panel.title, colours.ink, "bold", 12)
    found = {name: measured[key] for key, name in panel.names.items() if key in measured}
    most = max((each["lines_per_second"] for each in found.values()), default=1.0)
    for row, (name, each) in enumerate(found.items()):
        top, value = y + 22 + row * SMALL_ROW, each["lines_per_second"]
        yield _text(x + SMALL_NAMES, top + 10, _short(name), colours.ink, anchor="end", size=11)
        length = SMALL_BAR * value / most
        fill = _colour(name, colours)
        yield from _bar(x + SMALL_NAMES + 6, top, length, SMALL_ROW - 6, value, fill, colours, 11)


def _short(name: str) -> str:
    """Of a name in the headline, what fits a small multiple."""
    return {
        "aiohttp to a JSONL file": "aiohttp to JSONL",
        "OpenAI cookbook script": "cookbook script",
        "Celery, a task per line": "Celery",
    }.get(name, name)


def _colour(name: str, colours: Colours) -> str:
    if name.startswith("xalen-batch"):
        return colours.ours
    return colours.ceiling if name == "ceiling" else colours.other


def _bar(
    x: float,
    y: float,
    length: float,
    height: float,
    value: float,
    fill: str,
    colours: Colours,
    size: int = 13,
) -> Sequence[str]:
    """A bar and its figure, which is rounded as in the tables.

    The results keep one decimal, so a figure that ends in .5 was less: halves are rounded down.
    """
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{max(1.0, length):.1f}" height="{height:.0f}"'
        f' rx="2" fill="{fill}"/>',
        _text(
            x + length + 6, y + height - 4, f"{math.ceil(value - 0.5):,}", colours.ink, size=size
        ),
    )


def _text(
    x: float,
    y: float,
    words: str,
    fill: str,
    weight: str = "normal",
    size: int = 13,
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" fill="{fill}" text-anchor="{anchor}" font-size="{size}"'
        f' font-weight="{weight}">{escape(words)}</text>'
    )


def write(results: Json, folder: Path = IMAGES) -> None:
    """Draw what was published."""
    for name, drawn in pictures(results).items():
        (folder / name).write_text(drawn, "utf-8")


if __name__ == "__main__":
    write(json.loads(RESULTS.read_text("utf-8")))
