"""The report is complete: a run with an error appears in each of its forms."""

from pathlib import Path

from benchmarks.report import publish
from tests.chaos import report
from tests.chaos.campaign import advice
from tests.chaos.run import Outcome

GOOD = Outcome(
    seed=3,
    lease=3.0,
    faults=["kill -9: api", "crash point: record: before its commit"],
    fired=["record: before its commit"],
    kills=2,
    batches=4,
    lines=300,
    calls=310,
    repeated=7,
    given_up={"worker_lost": 1},
    recovery=4.25,
)
WRONG = Outcome(
    seed=50,
    lease=60.0,
    faults=["kill -9: api"],
    kills=1,
    batches=2,
    lines=200,
    lost=1,
    wrong=["a line is missing"],
    recovery=61.0,
)


def test_figures_are_sums_and_recoveries_are_by_lease() -> None:
    found = report.summary([GOOD, WRONG])
    assert (
        found["runs"],
        found["runs in which something was wrong"],
        found["lines"],
        found["lines lost"],
    ) == (2, 1, 500, 1)
    assert (found["faults"], found["crashes at a named point"], found["processes killed"]) == (
        2,
        1,
        3,
    )
    assert (
        found["worst recovery with a lease of 3 s, seconds"],
        found["worst recovery with the default lease of 60 s, seconds"],
    ) == (
        4.2,
        61.0,
    )
    assert found["lines given up, told so and not billed"] == "1 worker_lost"


def test_a_fault_is_counted_and_a_crash_point_that_nobody_reached_is_not() -> None:
    assert report.by_fault([GOOD, WRONG]) == [
        ("crash: record: before its commit", 1, 0),
        ("kill -9: api", 2, 1),
    ]


def test_a_wrong_run_says_how_to_run_it_again() -> None:
    assert "WRONG" in report.line(WRONG)
    assert "a line is missing" in advice(WRONG)
    assert "make chaos SEED=50 RUNS=1" in advice(WRONG)
    assert report.as_json([GOOD, WRONG])["runs"][1]["wrong"] == ["a line is missing"]


def test_publishing_renews_the_seeds_that_ran() -> None:
    published = report.as_json([GOOD, WRONG])
    renewed = report.merged(published, [Outcome(seed=50, lease=60.0, recovery=60.5)])
    assert [(outcome.seed, outcome.wrong, outcome.recovery) for outcome in renewed] == [
        (3, [], 4.2),
        (50, [], 60.5),
    ]


def test_the_page_gets_the_figures_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- bench:chaos -->\nof last year\n<!-- /bench:chaos -->\nafter\n", "utf-8"
    )
    assert publish(page, {"chaos": report.markdown([GOOD, WRONG])}) == []
    text = page.read_text("utf-8")
    assert "| lines lost | 1 |" in text
    assert "of last year" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
