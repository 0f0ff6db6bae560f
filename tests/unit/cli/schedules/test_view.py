"""Schedules, runs and fires as people see them."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from tests.unit.cli.fake_api import Api, serving
from tests.unit.cli.schedules.answers import PREVIEW, RUN, SCHEDULE, SOURCE, listed, ok, run
from xalen_batch import states
from xalen_batch.cli import clock, output
from xalen_batch.cli.schedules import view
from xalen_batch.cli.stacked import stacked

HOSTILE = "\x1b[2Jnight\u202e"
LONG = "0" * 32
ROW = view.row_of(
    SCHEDULE
    | {
        "id": f"sched_{LONG}",
        "last_run": RUN | {"state": "running", "reason": "execution_window"},
    }
)
RUN_ROW = view.row_of_run(
    RUN
    | {
        "batch_id": f"batch_{LONG}",
        "state": "cancelled",
        "reason": "batch_cancelled",
        "lag": 799_800.0,
        "as_of": 1795138200,
    }
)


@pytest.fixture
def api() -> Iterator[Api]:
    with serving() as server:
        yield server


class TestShown:
    def test_the_list_shows_the_next_fire_twice_the_last_result_and_the_latest_runs(
        self, api: Api
    ) -> None:
        api.answers = [listed(SCHEDULE | {"name": HOSTILE, "recent_runs": SCHEDULE["recent_runs"]})]
        result = run(api, "list", "--status", "active")
        assert api.requests[0][1] == "/v1/schedules?limit=50&status=active"
        row = result.stdout.splitlines()[2]
        for text in (
            "\\x1b[2Jnight\\u202e",
            "sched_1",
            "30 2 * * *",
            "Europe/Berlin",
            "Thu 2026-11-26 02:30 +01:00",
            "2026-11-26 01:30 UTC",
        ):
            assert text in row
        assert row.split()[-3:] == ["·▸✓✗c–!", "succeeded", "active"]
        assert "✓ succeeded" in result.stderr

    def test_every_state_has_a_mark_of_its_own_also_in_ascii(self) -> None:
        assert set(view.MARKS) == set(states.RunState)
        marks = list(view.MARKS.values())
        assert (
            len({mark for mark, *_ in marks})
            == len({letter for _, letter, _ in marks})
            == len(marks)
        )
        assert all(letter.isascii() for _, letter, _ in marks)

    def test_a_terminal_without_unicode_gets_letters(self) -> None:
        with (Path("/dev/null")).open("w", encoding="ascii") as file:
            assert (
                view.sparkline(
                    [{"state": "succeeded"}, {"state": "failed"}], Console(file=file)
                ).plain
                == "sF"
            )

    @pytest.mark.parametrize(("layouts", "row"), [(view.SCHEDULES, ROW), (view.RUNS, RUN_ROW)])
    @pytest.mark.parametrize("width", [60, 80, 100, 120])
    def test_on_a_terminal_nothing_is_folded_and_no_line_is_too_long(
        self, width: int, layouts: Any, row: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        console = Console(width=width, force_terminal=True, no_color=True, color_system=None)
        output.show(
            stacked(layouts, [row], right=("lag", "cost USD"), folded=view.FOLDED, console=console),
            console,
        )
        printed = capsys.readouterr().out
        for cell in row:
            assert cell.plain in printed
        assert max(map(len, printed.splitlines())) <= width

    def test_a_long_name_is_folded_and_not_what_is_beside_it(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        console = Console(width=80, force_terminal=True, no_color=True, color_system=None)
        row = (Text("night " * 30), *ROW[1:])
        output.show(stacked(view.SCHEDULES, [row], folded=view.FOLDED, console=console), console)
        printed = capsys.readouterr().out
        for cell in ROW[1:]:
            assert cell.plain in printed

    def test_show_folds_no_id_on_a_terminal_of_80_columns(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        console = Console(width=80, force_terminal=True, no_color=True, color_system=None)
        schedule = SCHEDULE | {
            "id": f"sched_{LONG}",
            "last_run": RUN | {"batch_id": f"batch_{LONG}", "message": "It failed. " * 9},
        }
        console.print(output.fields(view._fields(schedule)))
        printed = capsys.readouterr().out
        assert f"sched_{LONG}" in printed
        assert f"batch_{LONG}" in printed

    def test_times_of_a_run_are_on_its_zones_clock_also_after_a_clock_change(self) -> None:
        run = RUN | {"scheduled_local": "2026-10-24T02:30:00+02:00", "scheduled_for": 1792801800}
        late = [
            ("2026-10-24T02:31:00+02:00", "02:31:00"),
            ("2026-10-26T02:31:00+01:00", "2026-10-26 02:31:00 +01:00"),
        ]
        for fired, shown in late:
            fired_at = int(datetime.fromisoformat(fired).timestamp())
            assert view.row_of_run(run | {"fired_at": fired_at})[2].plain == shown
        unknown = view.row_of_run(run | {"timezone": "Mars/Olympus"})
        assert unknown[2].plain == "2026-11-25 01:30:04 UTC"

    @pytest.mark.parametrize("trigger", ["manual", "backfill"])
    def test_a_run_that_was_asked_for_has_no_lag(self, trigger: str) -> None:
        assert view.row_of_run(RUN | {"trigger": trigger, "lag": 799_800.0})[3].plain == "-"

    def test_show_has_every_field_and_no_control_character(self, api: Api) -> None:
        window = {
            "start": "22:00",
            "end": "06:00",
            "days": ["mon", "tue"],
            "timezone": "Europe/Berlin",
        }
        api.answers = [
            ok(
                SCHEDULE
                | {
                    "name": HOSTILE,
                    "pause_note": HOSTILE,
                    "source": SOURCE,
                    "execution_window": window,
                }
            )
        ]
        result = run(api, "show", "sched_1")
        for name in set(SCHEDULE) - {"object", "next_fire_local"}:
            assert f"\n{name} " in f"\n{result.stdout}"
        for text in (
            "22:00–06:00 Europe/Berlin, mon–tue",
            "prefix=drop/",
            "succeeded=1",
            "Thu 2026-11-26 02:30 +01:00",
        ):
            assert text in result.stdout
        assert "\x1b" not in result.stdout

    def test_runs_show_when_why_and_what_it_cost(self, api: Api) -> None:
        missed = RUN | {
            "state": "missed",
            "message": "Nothing was there.",
            "fired_at": None,
            "lag": None,
            "batch_id": None,
            "cost": None,
        }
        late = RUN | {"fired_at": 1795650000, "lag": 79_800.0}
        api.answers = [
            listed(
                RUN,
                late,
                missed,
                missed | {"scheduled_for": 1, "scheduled_local": "2026-11-24T02:30:00+01:00"},
            )
        ]
        result = run(api, "runs", "sched_1", "--limit", "4", "--state", "missed")
        assert api.requests[0][1] == "/v1/schedules/sched_1/runs?limit=4&state=missed"
        lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
        assert (
            lines[2]
            == "Wed 2026-11-25 02:30 +01:00 02:30:04 4.2 s succeeded schedule batch_1 - 0.00012345"
        )
        assert "2026-11-26 00:40:00 22 h 10 min" in lines[3]
        assert (
            lines[-1]
            == "Tue 2026-11-24 02:30 +01:00 to Wed 2026-11-25 02:30 +01:00 (2 runs): missed:"
            " Nothing was there."
        )

    def test_a_preview_says_where_the_offset_changes(self, api: Api) -> None:
        api.answers = [ok(PREVIEW)]
        result = run(
            api, "preview", "--cron", "30 2 * * *", "--timezone", "Europe/Berlin", "--count", "2"
        )
        assert api.requests[0][1] == "/v1/schedules/preview?count=2"
        first, change, second = result.stdout.splitlines()[2:]
        assert first.startswith("Fri 2100-12-10 02:30 +02:00")
        assert change == "the clock changes from +02:00 to +01:00"
        assert second.startswith("Sat 2100-12-11 02:30 +01:00")

    @pytest.mark.parametrize(
        "arguments",
        [["preview"], ["preview", "sched_1", "--cron", "@daily"], ["preview", "--timezone", "UTC"]],
    )
    def test_a_preview_is_of_one_thing(self, arguments: list[str], api: Api) -> None:
        assert (run(api, *arguments).exit_code, api.requests) == (2, [])


@pytest.mark.parametrize(
    ("value", "zone"),
    [
        ("Europe/Berlin", "Europe/Berlin"),
        (":Europe/Berlin", "Europe/Berlin"),
        ("/usr/share/zoneinfo/right/Asia/Kathmandu", "Asia/Kathmandu"),
        ("CET-1CEST", None),
        ("", None),
    ],
)
def test_the_zone_of_the_machine_is_a_name_or_not_known(
    value: str, zone: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", value)
    assert clock.machine_zone() == zone


@pytest.mark.parametrize(
    ("target", "zone"), [("zoneinfo/Europe/Berlin", "Europe/Berlin"), ("elsewhere/Berlin", None)]
)
def test_without_tz_the_link_of_the_system_names_the_zone(
    target: str, zone: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TZ", raising=False)
    link = tmp_path / "localtime"
    link.symlink_to(tmp_path / target)
    monkeypatch.setattr(clock, "LOCALTIME", link)
    assert clock.machine_zone() == zone


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (4.25, "4.2 s"),
        (59, "59 s"),
        (725, "12 min 5 s"),
        (3_605, "1 h"),
        (24_120, "6 h 42 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_a_length_of_time_is_its_two_largest_units(seconds: float, text: str) -> None:
    assert clock.length(seconds) == text
