"""`accounts limits`: an operator sets what one account may hold, and sees it."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from tests import factories
from xalen_batch import db
from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Owner
from xalen_batch.accounts.quotas import Quota
from xalen_batch.cli.main import app


@pytest.fixture(autouse=True)
def acme(database: str) -> Owner:
    with db.transaction() as session:
        return Owner(factories.account(session, "acme").id, True)


def limits(*options: str) -> Any:
    result = CliRunner().invoke(app, ["accounts", "limits", "acme", *options, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["data"]


def test_without_options_it_shows_both_modes() -> None:
    test, live = limits()
    assert (test["account"], test["livemode"], live["livemode"]) == ("acme", False, True)
    assert live["quotas"]["open_batches"] == {"used": 0, "limit": 1_000, "source": "settings"}
    assert live["quotas"]["requests_per_second"]["used"] is None


def test_numbers_none_and_default_in_one_mode(acme: Owner) -> None:
    [live] = limits("--mode", "live", "--open-batches", "5", "--storage-bytes", "none")
    assert live["quotas"]["open_batches"] == {"used": 0, "limit": 5, "source": "operator"}
    assert live["quotas"]["storage_bytes"] == {"used": 0, "limit": None, "source": "operator"}
    [live] = limits("--mode", "live", "--open-batches", "default", "--enqueued-lines", "0")
    assert [live["quotas"][name]["limit"] for name in ("open_batches", "enqueued_lines")] == [
        1_000,
        0,
    ]
    with db.reading() as session:
        assert quotas.given(session, acme) == {Quota.STORAGE_BYTES: None, Quota.ENQUEUED_LINES: 0}
        assert quotas.given(session, Owner(acme.account_id, False)) == {}


def test_the_table_is_for_people() -> None:
    shown = (
        CliRunner().invoke(app, ["accounts", "limits", "acme", "--enqueued-tokens", "none"]).stdout
    )
    [row] = [
        line.split()
        for line in shown.splitlines()
        if line.startswith("live") and "bytes in files" in line
    ]
    assert row == [
        "live",
        "bytes",
        "in",
        "files,",
        "pending",
        "uploads",
        "and",
        "inboxes",
        "0",
        "107,374,182,400",
        "settings",
    ]


@pytest.mark.parametrize("quota", Quota)
def test_every_quota_is_shown_and_can_be_set(quota: Quota) -> None:
    [live] = limits("--mode", "live", f"--{quota.replace('_', '-')}", "7")
    assert set(live["quotas"]) == set(Quota)
    assert live["quotas"][quota]["limit"] == 7


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["acme", "--open-batches", "-1"], 2, "is not a number"),
        (["acme", "--open-batches", "many"], 2, "`none` for no limit"),
        (["acme", "--requests-per-second", "0"], 2, "shut the account out"),
        (["nobody"], 1, "There is no account named 'nobody'"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], code: int, words: str) -> None:
    result = CliRunner().invoke(app, ["accounts", "limits", *arguments])
    assert result.exit_code == code
    # In a box that folds.
    assert words in " ".join(result.stderr.replace("│", " ").split())
