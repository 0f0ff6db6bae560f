"""`keys` and `audit` on the command line."""

import json
import os
import pwd
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests import factories
from tests.integration.accounts.audit_log import entries
from xalen_batch import db, ids
from xalen_batch.accounts import accounts, keys
from xalen_batch.accounts.accounts import Owner
from xalen_batch.cli.main import app

HOSTILE = "evil\x1b[2J\x1b]0;owned\x07\u202eeman"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


def answer(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def made(database: str) -> dict[str, Any]:
    found: dict[str, Any] = answer(
        "keys",
        "create",
        "--account",
        "acme",
        "--create-account",
        "--mode",
        "live",
        "--name",
        "ci",
        "--scopes",
        "read,admin",
    )
    return found


def scopes(secret: str) -> set[str]:
    with db.transaction() as session:
        return set(accounts.authenticate(session, secret).scopes)


def test_a_new_key_makes_no_others_unless_it_is_said(database: str, made: dict[str, Any]) -> None:
    assert scopes(answer("keys", "create", "--account", "acme")["secret"]) == {
        "submit",
        "read",
        "billing",
    }
    assert scopes(made["secret"]) == {"read", "admin"}


def test_a_rotated_key_is_printed_once_with_the_end_of_the_old_one(made: dict[str, Any]) -> None:
    result = run("keys", "rotate", made["id"], "--overlap", "30m")
    assert result.exit_code == 0
    secret = result.stdout.strip()
    assert secret.startswith("xln_live_")
    assert scopes(secret) == scopes(made["secret"]) == {"read", "admin"}
    assert f"{made['id']} expires 20" in result.stderr
    assert secret not in result.stderr
    listed = answer("keys", "list")["data"]
    assert [(key["name"], key["rotated_from"]) for key in listed] == [
        ("ci", None),
        ("ci", made["id"]),
    ]
    assert 0 < listed[0]["expires_at"] - listed[1]["created_at"] <= 1800
    assert listed[0]["last_used_at"] is not None
    assert secret not in run("keys", "list").stdout


def test_a_rotation_as_json(made: dict[str, Any]) -> None:
    new = answer("keys", "rotate", made["id"], "--overlap", "0")
    assert (new["account"], new["livemode"], scopes(new["secret"])) == (
        "acme",
        True,
        {"read", "admin"},
    )
    with pytest.raises(accounts.Unauthenticated, match="expired"):
        scopes(made["secret"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("rotate", "{id}", "--overlap", "31d"), 2, "between 0 and 30 days"),
        (("rotate", "{id}", "--overlap", "soon"), 2, "is no length of time"),
        (("rotate", "key_1"), 1, "No such API key: key_1"),
        (("revoke", f"key_{'0' * 32}"), 1, "No such API key"),
        (("create", "--account", "acme", "--scopes", "root"), 2, "root is no scope"),
        (("create", "--account", "acme", "--scopes", ","), 2, "Choose among submit"),
        (("rotate", "xln_live_secret"), 2, "is not the id of a key, `key_…`"),
    ],
)
def test_what_cannot_be_done_is_explained_and_changes_nothing(
    made: dict[str, Any], arguments: tuple[str, ...], code: int, words: str
) -> None:
    result = run("keys", *(argument.replace("{id}", made["id"]) for argument in arguments))
    assert (result.exit_code, words in " ".join(result.stderr.split())) == (
        code,
        True,
    ), result.stderr
    assert len(answer("keys", "list")["data"]) == 1


def test_a_revoked_key_is_refused(made: dict[str, Any]) -> None:
    assert answer("keys", "revoke", made["id"])["revoked_at"] is not None
    with pytest.raises(accounts.Unauthenticated, match="revoked"):
        scopes(made["secret"])


class TestAudit:
    def test_it_shows_who_did_what(self, made: dict[str, Any]) -> None:
        run("keys", "revoke", made["id"])
        created, revoked = answer("audit", "--of", made["id"])["data"]
        me = f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
        assert [entry["actor"] for entry in (created, revoked)] == [me, me]
        assert created | {"at": "", "account_id": ""} == {
            "at": "",
            "actor": me,
            "action": "key.created",
            "object_id": made["id"],
            "account_id": "",
            "livemode": True,
            "before": None,
            "after": {"name": "ci", "scopes": ["read", "admin"]},
        }
        shown = run("audit").stdout
        assert f"{me} key.created {made['id']}" in " ".join(shown.split())
        assert "name=ci scopes=read,admin" in shown
        assert "revoked_at=- → 20" not in shown
        assert "revoked_at=20" in shown

    def test_a_change_shows_what_was_and_what_is(self, made: dict[str, Any]) -> None:
        with db.transaction() as session:
            keys.lock(session, made["id"]).scopes = ["read"]
        assert "scopes=read,admin → read" in run("audit", "--of", made["id"]).stdout

    def test_it_is_cut_by_time_and_number(self, made: dict[str, Any]) -> None:
        assert answer("audit", "--since", "2999-01-01") == {
            "object": "list",
            "data": [],
            "has_more": False,
        }
        empty = run("audit", "--since", "2999-01-01")
        assert (empty.stdout, empty.stderr) == ("", "No change matches --since and --of.\n")
        everything = answer("audit", "--since", "24h")
        assert everything == answer("audit", "--since", "2020-01-01")
        assert answer("audit", "--limit", "1") == {
            "object": "list",
            "data": everything["data"][-1:],
            "has_more": True,
        }
        assert not answer("audit", "--limit", str(len(everything["data"])))["has_more"]
        assert "These are the newest 1. --limit shows more." in run("audit", "--limit", "1").stderr
        assert run("audit", "--since", "yesterday").exit_code == 2

    def test_names_steer_no_terminal(self, database: str) -> None:
        with db.transaction() as session:
            account = factories.account(session, HOSTILE)
            key, _ = keys.create(session, Owner(account.id, False), name=HOSTILE)
            factories.schedule(session, Owner(account.id, False), name=HOSTILE)
            assert [entry.action for entry in entries(session)] == [
                "account.created",
                "key.created",
                "schedule.created",
            ]
        for command in (
            ("audit",),
            ("keys", "list"),
            ("keys", "rotate", ids.render("key", key.id)),
            ("audit", "--json"),
            ("keys", "list", "--json"),
        ):
            result = run(*command)
            assert result.exit_code == 0
            assert not {"\x1b", "\x07", "\u202e"} & set(result.output), command
        assert "evil\\x1b[2J" in run("audit").stdout
