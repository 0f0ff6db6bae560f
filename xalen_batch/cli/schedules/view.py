"""How schedules, their runs and their fires are shown to people."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xalen_batch.cli import clock, windows
from xalen_batch.cli.output import STDERR, STDOUT, counted, fields, grid, pairs, safe, say, show

# Of each state: the mark in a sparkline, the letter where the terminal has no such mark, and the colour.
MARKS = {
    "succeeded": ("✓", "s", "green"),
    "failed": ("✗", "F", "bold red"),
    "missed": ("!", "!", "bold magenta"),
    "cancelled": ("c", "c", "yellow"),
    "skipped": ("–", "-", "dim"),
    "running": ("▸", ">", "cyan"),
    "waiting": ("·", ".", "cyan"),
}
UNKNOWN = ("?", "?", "")
STATUSES = {"active": "green", "paused": "yellow", "ended": "dim"}
# What is shown in one cell of a terminal, one above the other; in a pipe each has a column.
SCHEDULES = (("name", "id"), ("when", "time zone"), ("next fire", "UTC"), ("latest runs", "last result"), ("state",))
RUNS = (("scheduled for",), ("fired",), ("lag",), ("state", "trigger"), ("batch", "reason"), ("cost USD",))
FIRES = ("local time", "UTC", "in")


def table_of(schedules: Sequence[dict[str, Any]]) -> None:
    """Schedules, and on stderr what the marks mean."""
    show(stacked(SCHEDULES, map(row_of, schedules)))
    say_legend(STDOUT)


def row_of(schedule: dict[str, Any]) -> tuple[Text, ...]:
    """The cells of a schedule, in the order of SCHEDULES."""
    last = schedule["last_run"]
    return (
        Text(safe(schedule["name"]), "bold"),
        Text(schedule["id"]),
        Text(safe(schedule["cron"])),
        Text(safe(schedule["timezone"])),
        Text(clock.local(schedule["next_fire_local"])),
        Text(clock.utc(schedule["next_fire_at"]), "dim"),
        sparkline(schedule["recent_runs"]),
        Text("-") if last is None else _state(last["state"]),
        Text(schedule["status"], STATUSES.get(schedule["status"], "")),
    )


def stacked(
    columns: Sequence[Sequence[str]], rows: Iterable[Sequence[Text]], *, right: Sequence[str] = (), console: Console = STDOUT
) -> Table:
    """A table whose columns each hold several cells: one above the other on a terminal, side by side in a pipe."""
    if not console.is_terminal:
        return grid([name for column in columns for name in column], rows, right=right)
    table = grid(["\n".join(column) for column in columns], (), right=right)
    for row in rows:
        cells = iter(row)
        table.add_row(*(Text("\n").join([next(cells) for _ in column]) for column in columns))
        table.add_section()
    return table


def sparkline(runs: Iterable[dict[str, Any]], console: Console = STDOUT) -> Text:
    """One mark a run, in the order given; a dash for none."""
    marks = [(_mark(run["state"], console), MARKS.get(run["state"], UNKNOWN)[2]) for run in runs]
    return Text.assemble(*marks) if marks else Text("-")


def say_legend(console: Console) -> None:
    """What the marks of a sparkline on this console mean, on stderr."""
    STDERR.print("  ".join(f"{_mark(state, console)} {state}" for state in MARKS), style="dim", soft_wrap=True)


def _mark(state: str, console: Console) -> str:
    mark, letter, _ = MARKS.get(state, UNKNOWN)
    return letter if console.options.ascii_only else mark


def _state(state: str) -> Text:
    return Text(safe(state), MARKS.get(state, UNKNOWN)[2])


def details(schedule: dict[str, Any]) -> None:
    """Every field of one schedule, and on stderr what the marks mean."""
    show(fields(_fields(schedule)))
    if schedule["recent_runs"]:
        say_legend(STDOUT)


def _fields(schedule: dict[str, Any]) -> Iterator[tuple[str, object]]:
    for name, value in schedule.items():
        match name:
            case "object" | "next_fire_local":
                continue
            case "next_fire_at":
                yield name, f"{clock.local(schedule['next_fire_local'])} ({clock.utc(value)})" if value else "-"
            case "recent_runs":
                yield name, sparkline(value)
            case "last_run":
                yield name, _told(value) if value else "-"
            case "execution_window" if value:
                yield name, windows.described(value)
            case _ if name.endswith("_at"):
                yield name, clock.utc(value)
            case _ if isinstance(value, dict):
                yield name, pairs({key: item for key, item in value.items() if item is not None}) or "-"
            case _:
                yield name, "-" if value is None else value


def _told(run: dict[str, Any]) -> str:
    """A run in one line."""
    parts = [f"{clock.local(run['scheduled_local'])} {run['state']}", run["reason"], run["message"], run["batch_id"]]
    return ", ".join(str(part) for part in parts if part)


def runs_of(runs: Sequence[dict[str, Any]]) -> None:
    """Runs, and below them why some are as they are."""
    show(stacked(RUNS, map(row_of_run, runs), right=("lag", "cost USD")))
    for line in _reasons(runs):
        STDOUT.print(line, soft_wrap=True)


def row_of_run(run: dict[str, Any]) -> tuple[Text, ...]:
    """The cells of a run, in the order of RUNS."""
    fired, lag = run["fired_at"], run["lag"]
    return (
        Text(clock.local(run["scheduled_local"])),
        Text("-" if fired is None else clock.beside(fired, run["scheduled_local"])),
        Text("-" if lag is None else clock.length(lag)),
        _state(run["state"]),
        Text(run["trigger"], "dim"),
        Text(run["batch_id"] or "-"),
        Text(safe(run["reason"] or "-"), "dim"),
        Text(run["cost"] or "-"),
    )


def _reasons(runs: Iterable[dict[str, Any]]) -> Iterator[Text]:
    """What runs have to say, those with the same words in a row told once."""
    for (state, message), alike in groupby(runs, lambda run: (run["state"], run["message"])):
        if message:
            found = [clock.local(run["scheduled_local"]) for run in sorted(alike, key=lambda run: run["scheduled_for"])]
            when = found[0] if len(found) == 1 else f"{found[0]} to {found[-1]} ({counted(len(found), 'run')})"
            yield Text.assemble(f"{when}: ", _state(state), f": {safe(message)}")


def show_fires(preview: dict[str, Any]) -> None:
    """Fires to come; a line of its own tells where the offset changes between two of them. On stderr the expression in words."""
    say(f"{safe(preview['description'])} ({safe(preview['timezone'])}).")
    if preview["fires"]:
        show(grid(FIRES, _fire_rows(preview["fires"])))
    _say_rest(preview)


def _fire_rows(fires: Sequence[dict[str, Any]]) -> Iterator[tuple[object, ...]]:
    before = fires[0]["utc_offset"]
    for fire in fires:
        if fire["utc_offset"] != before:
            yield Text(f"the clock changes from {before} to {fire['utc_offset']}", "yellow"), "", ""
        before = fire["utc_offset"]
        yield clock.local(fire["local"]), clock.utc(fire["scheduled_for"]), clock.until(fire["scheduled_for"])


def say_next(preview: dict[str, Any]) -> None:
    """The expression in words and the fires to come, on stderr."""
    say(f"{safe(preview['description'])} ({safe(preview['timezone'])}).")
    for fire in preview["fires"]:
        say(f"  {clock.local(fire['local'])}  {clock.utc(fire['scheduled_for'])}")
    _say_rest(preview)


def _say_rest(preview: dict[str, Any]) -> None:
    if not preview["fires"]:
        say("No fire is left.")
    if delay := preview["jitter_delay"]:
        say(f"Its jitter lets it fire {clock.length(delay)} later, every time.")
