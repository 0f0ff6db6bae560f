"""Renders schedules, their runs and their fires for people."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from xalen_batch.cli import clock, windows
from xalen_batch.cli.output import STDERR, STDOUT, counted, fields, grid, pairs, safe, say, show
from xalen_batch.cli.stacked import Layout, names_of, stacked
from xalen_batch.states import OPEN_RUNS

# For each state: the mark in a sparkline, a letter for terminals without that mark, and a colour.
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
DATES = "dates of"
SCHEDULES: tuple[Layout, ...] = (
    (
        ("name", "id"),
        ("when", "time zone"),
        ("next fire", "UTC"),
        ("latest runs", "last result"),
        ("state",),
    ),
    (
        ("name", "id"),
        ("when", "time zone"),
        ("next fire", "UTC"),
        ("latest runs", "last result", "state"),
    ),
    (
        ("name", "id", "when", "time zone"),
        ("next fire", "UTC", "latest runs", "last result", "state"),
    ),
)
RUNS: tuple[Layout, ...] = (
    (
        ("scheduled for", DATES),
        ("fired",),
        ("lag",),
        ("state", "trigger"),
        ("batch", "reason"),
        ("cost USD",),
    ),
    (
        ("scheduled for", DATES, "fired"),
        ("state", "trigger", "lag"),
        ("batch", "reason", "cost USD"),
    ),
    (("scheduled for", DATES, "fired", "lag"), ("batch", "state", "trigger", "reason", "cost USD")),
)
HAS_ENDED = (
    "It has ended: no fire is left. `xalen-batch schedules edit {id} --clear ends` (or --ends TIME)"
    " lets it fire again."
)
FOLDED = {"name", "when"}
FIRES = ("local time", "UTC", "in")


def table_of(schedules: Sequence[dict[str, Any]]) -> None:
    """Print schedules, and the legend of the marks on stderr."""
    show(stacked(SCHEDULES, map(row_of, schedules), folded=FOLDED))
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
        Text("-") if last is None else _result(last),
        Text(schedule["status"], STATUSES.get(schedule["status"], "")),
    )


def sparkline(runs: Iterable[dict[str, Any]], console: Console = STDOUT) -> Text:
    """One mark for each run, in the given order; a dash if there are none."""
    marks = [(_mark(run["state"], console), MARKS.get(run["state"], UNKNOWN)[2]) for run in runs]
    return Text.assemble(*marks) if marks else Text("-")


def say_legend(console: Console) -> None:
    """Print the legend of the sparkline on stderr."""
    STDERR.print(
        "  ".join(f"{_mark(state, console)} {state}" for state in MARKS),
        style="dim",
        soft_wrap=True,
    )


def _mark(state: str, console: Console) -> str:
    mark, letter, _ = MARKS.get(state, UNKNOWN)
    return letter if console.options.ascii_only else mark


def _state(state: str) -> Text:
    return Text(safe(state), MARKS.get(state, UNKNOWN)[2])


def _result(run: dict[str, Any]) -> Text:
    """The state of a run, and the reason that it waits."""
    shown = _state(run["state"])
    return (
        shown.append(f" ({safe(run['reason'])})")
        if run["reason"] and run["state"] in OPEN_RUNS
        else shown
    )


def details(schedule: dict[str, Any]) -> None:
    """Print every field of one schedule, and the legend of the marks on stderr."""
    show(fields(_fields(schedule)))
    if schedule["recent_runs"]:
        say_legend(STDOUT)


def _fields(schedule: dict[str, Any]) -> Iterator[tuple[str, object]]:
    for name, value in schedule.items():
        match name:
            case "object" | "next_fire_local":
                continue
            case "next_fire_at":
                yield (
                    name,
                    (
                        f"{clock.local(schedule['next_fire_local'])} ({clock.utc(value)})"
                        if value
                        else "-"
                    ),
                )
            case "recent_runs":
                yield name, sparkline(value)
            case "last_run":
                yield name, _told(value) if value else "-"
            case "execution_window" if value:
                yield name, windows.described(value)
            case _ if name.endswith("_at"):
                yield name, clock.utc(value)
            case _ if isinstance(value, dict):
                yield (
                    name,
                    pairs({key: item for key, item in value.items() if item is not None}) or "-",
                )
            case _:
                yield name, "-" if value is None else value


def _told(run: dict[str, Any]) -> str:
    """A run in one line."""
    parts = [
        f"{clock.local(run['scheduled_local'])} {run['state']}",
        run["reason"],
        words_of(run),
        run["batch_id"],
    ]
    return ", ".join(str(part) for part in parts if part)


def runs_of(runs: Sequence[dict[str, Any]]) -> None:
    """Print runs, and below them the reasons of those that have one."""
    layouts, rows = RUNS, [row_of_run(run) for run in runs]
    if not any(run["as_of"] for run in runs):
        place = names_of(RUNS[0]).index(DATES)
        layouts = tuple(
            [[name for name in column if name != DATES] for column in layout] for layout in RUNS
        )
        rows = [(*row[:place], *row[place + 1 :]) for row in rows]
    show(stacked(layouts, rows, right=("lag", "cost USD")))
    for line in _reasons(runs):
        STDOUT.print(line, soft_wrap=True)


def row_of_run(run: dict[str, Any]) -> tuple[Text, ...]:
    """The cells of a run, in the order of RUNS."""
    fired, lag = run["fired_at"], run["lag"] if run["trigger"] == "schedule" else None
    return (
        Text(clock.local(run["scheduled_local"])),
        Text("-" if run["as_of"] is None else clock.at(run["as_of"], run["timezone"])),
        Text(
            "-" if fired is None else clock.beside(fired, run["scheduled_local"], run["timezone"])
        ),
        Text("-" if lag is None else clock.length(lag)),
        _state(run["state"]),
        Text(run["trigger"], "dim"),
        Text(run["batch_id"] or "-"),
        Text(safe(run["reason"] or "-"), "dim"),
        Text(run["cost"] or "-"),
    )


def name_of(schedule: dict[str, Any]) -> str:
    """Its name, or its id if the key may change but not read it."""
    return safe(schedule["name"] or schedule["id"])


def words_of(run: dict[str, Any]) -> str | None:
    """The message of a run, with a command in place of a field of its batch."""
    message: str | None = run["message"]
    return message and message.replace(
        "its `errors` name every line", f"`xalen-batch show {run['batch_id']}` names every line"
    )


def _reasons(runs: Iterable[dict[str, Any]]) -> Iterator[Text]:
    """The messages of runs; equal ones in a row are merged."""
    for (state, message), alike in groupby(runs, lambda run: (run["state"], words_of(run))):
        if message:
            found = [
                clock.local(run["scheduled_local"])
                for run in sorted(alike, key=lambda run: run["scheduled_for"])
            ]
            when = (
                found[0]
                if len(found) == 1
                else f"{found[0]} to {found[-1]} ({counted(len(found), 'run')})"
            )
            yield Text.assemble(f"{when}: ", _state(state), f": {safe(message)}")


def show_fires(preview: dict[str, Any]) -> None:
    """Print the next fires, with a line wherever the offset from UTC changes.

    The expression in words goes to stderr.
    """
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
        yield (
            clock.local(fire["local"]),
            clock.utc(fire["scheduled_for"]),
            clock.until(fire["scheduled_for"]),
        )


def say_next(preview: dict[str, Any]) -> None:
    """Print the expression in words and the next fires on stderr."""
    say(f"{safe(preview['description'])} ({safe(preview['timezone'])}).")
    for number, fire in enumerate(preview["fires"]):
        say(
            f"{'      ' if number else 'Next: '}{clock.local(fire['local'])} "
            f" {clock.utc(fire['scheduled_for'])}"
        )
    _say_rest(preview)


def _say_rest(preview: dict[str, Any]) -> None:
    if not preview["fires"]:
        say(
            "There is no fire to show: none is left before its end. --ends sets a later one.",
            style="yellow",
        )
    elif delay := preview["jitter_delay"]:
        say(f"Its jitter lets it fire {clock.length(delay)} later, every time.")
