"""The audit log: every change by a caller or an operator has an entry, which cannot be changed."""

import os
import pwd
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg.errors
import pytest
import sqlalchemy.exc
from sqlalchemy import text
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from tests import billing, factories
from tests.conftest import as_owner
from tests.integration.accounts.audit_log import entries
from tests.integration.conftest import Api, new_key
from xalen_batch import db, files, ids
from xalen_batch.accounts import accounts, audit, keys
from xalen_batch.accounts.accounts import Owner, Scope
from xalen_batch.billing import invoices, prices
from xalen_batch.cli import database as of_commands
from xalen_batch.cli.main import app
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import Account, ApiKey, AuditEntry, Base, Batch, Schedule
from xalen_batch.pipeline import recover, sweeps
from xalen_batch.schedules import fire, schedules
from xalen_batch.standalone import credentials

CLOSED = "UPDATE prices SET valid_to = now() WHERE model = 'bge-reranker-v2' AND livemode"

Entry = tuple[str, str, dict[str, Any] | None, dict[str, Any] | None]


def written(
    act: Callable[[Session], object],
    transaction: Callable[[], AbstractContextManager[Session]] = db.transaction,
) -> list[AuditEntry]:
    """The entries that one transaction adds to the log."""
    with transaction() as session:
        known = {entry.id for entry in audit.entries(session, limit=1000)}
        act(session)
    with db.transaction() as session:
        return [entry for entry in audit.entries(session, limit=1000) if entry.id not in known]


def seen(found: list[AuditEntry]) -> list[Entry]:
    return [(entry.actor, entry.action, entry.before, entry.after) for entry in found]


@pytest.fixture
def owner(database: str) -> Owner:
    with db.transaction() as session:
        return Owner(factories.account(session).id, livemode=False)


@pytest.fixture
def key(owner: Owner) -> ApiKey:
    with db.transaction() as session:
        return keys.create(session, owner, name="ci", scopes=["read"])[0]


@pytest.fixture
def schedule(owner: Owner) -> Schedule:
    with db.transaction() as session:
        return factories.schedule(session, owner, metadata={"note": "a user's words"})


class TestKeys:
    def test_made(self, owner: Owner) -> None:
        [entry] = written(lambda session: keys.create(session, owner, name="ci", scopes=["read"]))
        assert seen([entry]) == [
            ("system", "key.created", None, {"name": "ci", "scopes": ["read"]})
        ]
        assert (entry.account_id, entry.livemode, entry.object_id[:4]) == (
            owner.account_id,
            False,
            "key_",
        )

    def test_rotated(self, key: ApiKey) -> None:
        old, made = written(
            lambda session: keys.rotate(session, session.get_one(ApiKey, key.id), timedelta())
        )
        assert (made.action, made.after) == (
            "key.created",
            {"name": "ci", "scopes": ["read"], "rotated_from": str(key.id)},
        )
        assert (old.action, old.object_id, old.before) == (
            "key.changed",
            ids.render("key", key.id),
            None,
        )
        assert old.after is not None
        assert set(old.after) == {"expires_at"}

    def test_revoked_once(self, key: ApiKey) -> None:
        def revoke(session: Session) -> None:
            keys.revoke(session, session.get_one(ApiKey, key.id))

        [entry] = written(revoke)
        assert (entry.action, entry.before, set(entry.after or {})) == (
            "key.changed",
            None,
            {"revoked_at"},
        )
        assert written(revoke) == []

    def test_use_is_no_change(self, owner: Owner) -> None:
        with db.transaction() as session:
            _, secret = keys.create(session, owner, name="ci")
        assert written(lambda session: accounts.authenticate(session, secret)) == []
        with db.transaction() as session:
            assert keys.every(session)[0].last_used_at is not None


class TestSchedules:
    def test_made_without_what_its_owner_wrote_in_it(self, owner: Owner) -> None:
        source = {"prefix": "a-users-folder"}
        [entry] = written(
            lambda session: factories.schedule(
                session, owner, metadata={"note": "a user's words"}, source=source
            )
        )
        assert (entry.action, entry.before) == ("schedule.created", None)
        after = entry.after or {}
        assert (after["name"], after["cron"], after["status"], after["jitter"]) == (
            "nightly",
            "30 2 * * *",
            "active",
            0,
        )
        assert (after["metadata"], after["source"]) == ("…", "…")
        assert "user" not in str(after)

    @pytest.mark.parametrize(
        ("change", "before", "after"),
        [
            (
                {"name": "weekly", "cron": "0 3 * * 1"},
                {"name": "nightly", "cron": "30 2 * * *"},
                {"name": "weekly", "cron": "0 3 * * 1"},
            ),
            ({"metadata": {"note": "other words"}}, {"metadata": "…"}, {"metadata": "…"}),
            ({"metadata": None}, {"metadata": "…"}, None),
        ],
    )
    def test_changed(
        self, owner: Owner, schedule: Schedule, change: dict[str, Any], before: Any, after: Any
    ) -> None:
        def act(session: Session) -> None:
            fields = {"name": "nightly", "metadata": {"note": "a user's words"}} | change
            locked = schedules.lock(session, owner, ids.render("sched", schedule.id))
            schedules.change(session, owner, locked, factories.definition(**fields))

        assert seen(written(act)) == [("system", "schedule.changed", before, after)]
        assert written(act) == []

    def test_paused_resumed_and_deleted(self, owner: Owner, schedule: Schedule) -> None:
        public_id = ids.render("sched", schedule.id)
        [paused] = written(
            lambda session: schedules.pause(
                session, schedules.lock(session, owner, public_id), "a user's words"
            )
        )
        [resumed] = written(
            lambda session: schedules.resume(session, schedules.lock(session, owner, public_id))
        )
        [deleted] = written(
            lambda session: schedules.delete(session, owner, public_id, discard_requests=False)
        )
        assert {paused.object_id, resumed.object_id, deleted.object_id} == {public_id}
        assert (paused.before, paused.after) == ({"status": "active"}, {"status": "paused"})
        assert (resumed.before, resumed.after) == ({"status": "paused"}, {"status": "active"})
        assert (deleted.before, set(deleted.after or {})) == (None, {"deleted_at"})

    def test_firing_is_no_change(self, owner: Owner, schedule: Schedule) -> None:
        with db.transaction() as session:
            session.execute(text("UPDATE schedules SET next_fire_at = now() - interval '1 second'"))

        def act(session: Session) -> None:
            fire.bring_up_to_date(
                session, schedules.lock(session, owner, ids.render("sched", schedule.id))
            )

        assert written(act) == []
        with db.transaction() as session:
            assert (
                session.get_one(Schedule, schedule.id).next_fire_at or db.now(session)
            ) > db.now(session)


class TestMoney:
    def test_a_price_that_ends_is_closed_and_another_one_is_created_later(
        self, database: str
    ) -> None:
        [closed] = written(lambda session: session.execute(text(CLOSED)))
        [created] = written(lambda session: prices.sync(session, prices.differences(session)))
        # As text: a number in JSON would be read as a float.
        price = {"model": "bge-reranker-v2", "component": "input", "usd_per_million": "0.003"}
        assert (closed.action, closed.livemode, closed.before) == ("price.closed", True, price)
        assert set(closed.after or {}) == {"model", "component", "valid_to"}
        assert (created.action, created.livemode, created.account_id, created.before) == (
            "price.created",
            True,
            None,
            None,
        )
        assert (created.after or {}) | {"valid_from": ""} == price | {"valid_from": ""}

    def test_a_price_that_changes_is_one_entry_with_both_prices(self, database: str) -> None:
        def dearer(session: Session) -> None:
            audit.sign(session, "cli:alice")
            session.execute(text(CLOSED))
            session.execute(
                text(
                    "INSERT INTO prices (id, model, component, livemode, usd_per_million) "
                    "VALUES (gen_random_uuid(), 'bge-reranker-v2', 'input', true, 0.0300)"
                )
            )

        [entry] = written(dearer)
        key = {"model": "bge-reranker-v2", "component": "input"}
        assert (entry.actor, entry.action, entry.livemode) == ("cli:alice", "price.changed", True)
        assert entry.before == key | {"usd_per_million": "0.003"}
        assert (entry.after or {}) | {"valid_from": ""} == key | {
            "usd_per_million": "0.0300",
            "valid_from": "",
        }

    def test_leave_for_simulated_answers_is_logged(self, owner: Owner) -> None:
        [entry] = written(lambda session: accounts.let_simulate(session, owner.account_id, True))
        assert (entry.action, entry.before, entry.after) == (
            "account.changed",
            {"simulated_live": False},
            {"simulated_live": True},
        )
        assert entry.object_id == ids.render("acct", owner.account_id)
        assert written(lambda session: accounts.let_simulate(session, owner.account_id, True)) == []

    def test_an_invoice_is_logged_when_its_batch_ends_and_once(self, owner: Owner) -> None:
        with db.transaction() as session:
            caller = accounts.authenticate(session, factories.key(session))
        batch = billing.ended([billing.Ran(Usage(1234, 567))], caller)
        with db.transaction() as session:
            [entry] = [entry for entry in entries(session) if entry.action.startswith("invoice")]
            after = entry.after or {}
            assert after | {"total": Decimal(after["total"])} == {
                "batch_id": str(batch.id),
                "currency": "USD",
                "total": Decimal("0.00002368"),
            }
            assert (entry.actor, entry.before, entry.account_id) == (
                "system",
                None,
                batch.account_id,
            )
        assert written(lambda session: invoices.issue(session, batch)) == []

    def test_a_statement_is_logged_when_it_is_closed(self, owner: Owner) -> None:
        batch = billing.ended([billing.Ran(Usage(1_000_000, 0))])
        with as_owner() as session:
            session.execute(text("SET LOCAL session_replication_role = replica"))
            session.execute(text("UPDATE invoices SET issued_at = '2026-01-15'"))
        [entry] = written(billing.issue_due)
        assert (entry.action, entry.account_id) == ("invoice.created", batch.account_id)
        assert (entry.after or {})["month"] == "2026-01-01"
        assert written(billing.issue_due) == []


# The triggers see every statement that writes to an audited table.
STATEMENTS = {
    "INSERT INTO api_keys (id, account_id, livemode, name, prefix, hash) VALUES (gen_random_uuid(), :account, true, 'x', '', '')": (
        "key.created"
    ),
    "UPDATE api_keys SET name = 'other'": "key.changed",
    "UPDATE api_keys SET scopes = '{admin}'": "key.changed",
    "DELETE FROM api_keys": "key.deleted",
    "UPDATE schedules SET name = 'other'": "schedule.changed",
    "UPDATE schedules SET definition = jsonb_set(definition, '{metadata}', '{\"a\": \"b\"}')": (
        "schedule.changed"
    ),
    "DELETE FROM schedules": "schedule.deleted",
    "INSERT INTO prices (id, model, component, livemode, usd_per_million) VALUES (gen_random_uuid(), 'm', 'input', true, 1)": (
        "price.created"
    ),
    CLOSED: "price.closed",
    "UPDATE accounts SET simulated_live = true": "account.changed",
    "INSERT INTO invoices (id, account_id, livemode, month, currency, total) VALUES (gen_random_uuid(), :account, true, '2026-01-01', 'USD', 1)": (
        "invoice.created"
    ),
}


@pytest.mark.parametrize("statement", STATEMENTS)
def test_no_statement_changes_anything_without_an_entry(
    owner: Owner, key: ApiKey, schedule: Schedule, statement: str
) -> None:
    values = {"account": owner.account_id} if ":account" in statement else {}
    # The owner has all privileges; the triggers log its statements, too.
    found = written(lambda session: session.execute(text(statement), values), as_owner)
    assert [entry.action for entry in found] == [STATEMENTS[statement]]


# Why a table has no trigger of the log.
NOT_AUDITED = {
    "account_tallies": "sums that triggers keep",
    "audit_log": "the log itself",
    "batch_notes": "an index of the metadata of batches, which a trigger keeps",
    "batch_paces": "measurements of batches in progress",
    "sealed_lines": "written when a batch is sealed, from its results, which are compared",
    "consumed_objects": "written by firing: what a run took, which its own row tells",
    "idempotency_keys": "answers kept for a replay; what was made is logged",
    "inbox_requests": (
        "users' own lines; they go into a file, or with their schedule, whose deletion is logged"
    ),
    "line_attempts": "failed attempts at lines, whose results are logged with their batch",
    "lost_leases": "tasks whose workers were lost; the progress of a batch",
    "invoice_lines": "written with their invoice, and never changed",
    "erasures": "how far the erasing of a deleted file's answers is, each step of which is logged",
    "events": "tells changes of objects, whose own tables are logged",
    "webhook_deliveries": "the progress of sending events",
    "store_mark": "the id of the store, which nothing changes",
    "schedule_runs": "a record of what ran and why, which nothing deletes",
    "tasks": "the progress of a batch",
    "uploads": "a file that arrives; its own row is logged",
    "upload_parts": "what is stored of it, for an hour at most",
    "workers": "who is alive",
}


def test_every_table_has_the_trigger_or_a_reason(database: str) -> None:
    with db.transaction() as session:
        found = session.scalars(
            text(
                "SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = 'audited' AND"
                " tgenabled = 'O'"
            )
        ).all()
    assert set(found).isdisjoint(NOT_AUDITED)
    assert set(found) | set(NOT_AUDITED) == set(Base.metadata.tables)


class TestOperators:
    def test_an_account_is_made_and_changed(self, database: str) -> None:
        [made] = written(lambda session: accounts.create(session, "acme"))
        assert seen([made]) == [
            ("system", "account.created", None, {"name": "acme", "weight": "1"})
        ]
        assert (made.object_id[:5], made.account_id, made.livemode) == ("acct_", None, None)
        [changed] = written(
            lambda session: session.execute(
                text("UPDATE accounts SET weight = 5, virtual_time = 7")
            )
        )
        assert seen([changed]) == [("system", "account.changed", {"weight": "1"}, {"weight": "5"})]
        assert (
            written(lambda session: session.execute(text("UPDATE accounts SET virtual_time = 8")))
            == []
        )

    def test_a_limit_is_given_changed_and_taken_back_by_the_user_of_the_command(
        self, owner: Owner
    ) -> None:
        def limits(*options: str) -> list[AuditEntry]:
            with db.reading() as session:
                name = session.get_one(Account, owner.account_id).name

            def run(_: Session) -> None:
                result = CliRunner().invoke(
                    app, ["accounts", "limits", name, "--mode", "test", *options]
                )
                assert result.exit_code == 0, result.output

            return written(run)

        me = f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
        [given] = limits("--open-batches", "5")
        assert seen([given]) == [(me, "limit.changed", None, {"open_batches": "5"})]
        assert (given.object_id, given.account_id, given.livemode) == (
            ids.render("acct", owner.account_id),
            owner.account_id,
            False,
        )
        assert seen(limits("--open-batches", "none")) == [
            (me, "limit.changed", {"open_batches": "5"}, {"open_batches": "none"})
        ]
        assert limits("--open-batches", "none") == []
        assert seen(limits("--open-batches", "default")) == [
            (me, "limit.changed", {"open_batches": "none"}, None)
        ]


class TestErasure:
    @pytest.fixture
    def batch(self, owner: Owner) -> Batch:
        """A batch with two answers and an error, each part a file."""
        with db.transaction() as session:
            caller = accounts.authenticate(session, keys.create(session, owner, name="test")[1])
        return billing.ended(
            [billing.Ran(Usage(1, 1)), billing.Ran(Usage(1, 1)), billing.Ran(billing.REFUSED)],
            caller,
        )

    def test_an_output_file_that_its_owner_deletes(self, owner: Owner, batch: Batch) -> None:
        def act(session: Session) -> None:
            audit.sign(session, "key_1")
            files.delete(session, owner, ids.render("file", batch.output_file_id or UUID(int=0)))

        answers, file = written(act)
        name = ids.render("batch", batch.id)
        assert seen([answers]) == [("key_1", "answers.erased", {"lines": "2"}, None)]
        assert (answers.object_id, answers.account_id, answers.livemode) == (
            name,
            owner.account_id,
            False,
        )
        assert (file.actor, file.action, file.after) == ("key_1", "file.deleted", None)
        assert (file.object_id, file.account_id) == (
            ids.render("file", batch.output_file_id or UUID(int=0)),
            owner.account_id,
        )
        assert {key: (file.before or {})[key] for key in ("purpose", "batch_id")} == {
            "purpose": "batch_output",
            "batch_id": name,
        }

    def test_files_that_expire(self, batch: Batch) -> None:
        with db.transaction() as session:
            session.execute(text("UPDATE files SET expires_at = now() - interval '1 second'"))
        found = written(lambda _: recover.tick())
        assert {entry.actor for entry in found} == {"system"}
        assert (
            sorted(entry.action for entry in found) == ["answers.erased"] * 2 + ["file.deleted"] * 3
        )
        assert sorted(
            entry.before["lines"] for entry in found if entry.before and "lines" in entry.before
        ) == ["1", "2"]

    @pytest.mark.parametrize(
        ("statement", "lines"),
        [
            ("UPDATE results SET body = NULL", "3"),
            ("DELETE FROM results", "3"),
            ("UPDATE results SET flag = 'x'", None),
        ],
    )
    def test_whatever_statement_erases_them(
        self, batch: Batch, statement: str, lines: str | None
    ) -> None:
        entries = written(lambda session: session.execute(text(statement)), as_owner)
        found = [entry for entry in entries if entry.action == "answers.erased"]
        assert [entry.before for entry in found] == ([] if lines is None else [{"lines": lines}])

    def test_a_batch_that_is_cancelled_is_its_keys_doing(self, api: Api) -> None:
        file = api.upload(factories.jsonl([factories.chat_line("a")]))
        body = {
            "input_file_id": file["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        batch = api.ask("POST", "/v1/batches", body).json
        with db.transaction() as session:
            me = ids.render("key", accounts.authenticate(session, api.key).key_id)
        [entry] = written(lambda _: api.ask("POST", f"/v1/batches/{batch['id']}/cancel"))
        assert seen([entry]) == [
            (me, "batch.cancelled", {"status": "validating"}, {"status": "cancelling"})
        ]
        assert entry.object_id == batch["id"]


def test_a_change_that_is_rolled_back_leaves_no_entry(owner: Owner) -> None:
    def act(session: Session) -> None:
        keys.create(session, owner, name="ci")
        session.rollback()

    assert written(act) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET actor = 'nobody'",
        "DELETE FROM audit_log",
        "TRUNCATE audit_log",
        "TRUNCATE accounts, audit_log CASCADE",
    ],
)
def test_the_log_is_only_ever_added_to(owner: Owner, key: ApiKey, statement: str) -> None:
    with (
        pytest.raises(sqlalchemy.exc.IntegrityError, match="only ever added to") as caught,
        as_owner() as session,
    ):
        session.execute(text(statement))
    assert isinstance(caught.value.orig, psycopg.errors.RestrictViolation)
    with db.transaction() as session:
        assert [entry.action for entry in entries(session)] == ["account.created", "key.created"]


class TestActors:
    def test_a_command_is_its_users_doing(self, owner: Owner) -> None:
        def act(_: Session) -> None:
            with of_commands.transaction() as session:
                keys.create(session, owner, name="ci")

        assert [entry.actor for entry in written(act)] == [
            f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
        ]

    def test_a_user_without_a_name_is_known_by_their_number(
        self, owner: Owner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "getuid", lambda: 4_000_000)

        def act(_: Session) -> None:
            with of_commands.transaction() as session:
                keys.create(session, owner, name="ci")

        assert [entry.actor for entry in written(act)] == ["cli:uid 4000000"]

    def test_whoever_works_on_the_database_itself_is_known_by_their_role(
        self, owner: Owner, database: str
    ) -> None:
        def act(_: Session) -> None:
            with psycopg.connect(database) as connection:
                connection.execute(
                    "UPDATE prices SET valid_to = now() WHERE model = 'bge-reranker-v2'"
                )

        assert {entry.actor for entry in written(act)} == {"database:xalen_serve"}

    def test_the_keys_of_up_are_the_systems_doing(self, database: str, tmp_path: Any) -> None:
        path = tmp_path / "credentials.toml"
        with db.transaction() as session:
            made = credentials.keys(session, path)
        credentials.write(
            path, credentials.Credentials("http://x", made["test_key"], "xln_live_gone")
        )
        with db.transaction() as session:
            again = credentials.keys(session, path)
            assert {entry.actor for entry in entries(session)} == {"system"}
        assert again["test_key"] == made["test_key"]
        assert again["live_key"] != made["live_key"]

    def test_a_name_lasts_for_one_transaction(self, owner: Owner) -> None:
        with db.transaction() as session:
            audit.sign(session, "cli:somebody")
        assert [
            entry.actor for entry in written(lambda session: keys.create(session, owner, name="ci"))
        ] == ["system"]

    def test_every_route_that_changes_these_is_its_keys_doing(self, api: Api) -> None:
        admin = Api(api.port, new_key(scopes=Scope))
        with db.transaction() as session:
            me = ids.render("key", accounts.authenticate(session, admin.key).key_id)
            known = len(entries(session))
        body = {
            "name": "nightly",
            "cron": "0 3 * * *",
            "endpoint": "/v1/chat/completions",
            "inbox": {},
        }
        schedule = f"/v1/schedules/{admin.ask('POST', '/v1/schedules', body).json['id']}"
        key = f"/v1/api_keys/{admin.ask('POST', '/v1/api_keys', {'name': 'ci'}).json['id']}"
        asked = [
            ("PATCH", schedule, {"name": "weekly"}),
            ("POST", f"{schedule}/pause", None),
            ("POST", f"{schedule}/resume", None),
            ("DELETE", schedule, None),
            ("POST", f"{key}/rotate", None),
            ("DELETE", key, None),
        ]
        for method, path, sent in asked:
            assert admin.ask(method, path, sent).status == 200
        with db.transaction() as session:
            found = entries(session)[known:]
        assert [entry.action for entry in found] == [
            "schedule.created",
            "key.created",
            *["schedule.changed"] * 4,
            "key.changed",
            "key.created",
            "key.changed",
        ]
        assert {entry.actor for entry in found} == {me}


def test_the_log_is_read_by_time_and_by_what_was_changed(owner: Owner) -> None:
    with db.transaction() as session:
        made = [keys.create(session, owner, name=str(number))[0] for number in range(3)]
    with db.transaction() as session:
        assert [entry.after for entry in audit.entries(session, limit=2)] == [
            {"name": "1", "scopes": made[1].scopes},
            {"name": "2", "scopes": made[2].scopes},
        ]
        [entry] = audit.entries(session, object_id=ids.render("key", made[0].id), limit=9)
        assert (entry.after or {})["name"] == "0"
        assert audit.entries(session, since=datetime.now(UTC) + timedelta(hours=1), limit=9) == []
        assert (
            len(audit.entries(session, since=datetime.now(UTC) - timedelta(hours=1), limit=9)) == 9
        )


class TestForgetting:
    @staticmethod
    def aged(days: float) -> None:
        with as_owner() as session:
            session.execute(text("SET LOCAL session_replication_role = replica"))
            session.execute(
                text("UPDATE audit_log SET at = now() - :age"), {"age": timedelta(days=days)}
            )

    def left(self) -> int:
        with db.transaction() as session:
            return len(audit.entries(session, limit=1000))

    def test_entries_past_their_retention_go_in_steps(
        self, owner: Owner, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(audit, "AT_ONCE", 1)
        with db.transaction() as session:
            for _ in range(2):
                keys.create(session, owner, name="k", scopes=list(Scope), expires_at=None)
        before = self.left()
        assert before >= 2
        self.aged(101)
        configure(audit_retention=100 * 86_400)
        assert len(list(sweeps._forget_audit())) == before
        assert self.left() == 0

    def test_they_stay_for_ever_unless_told_otherwise(self, owner: Owner) -> None:
        with db.transaction() as session:
            keys.create(session, owner, name="k", scopes=list(Scope), expires_at=None)
        before = self.left()
        self.aged(5_000)
        list(sweeps._forget_audit())
        assert self.left() == before

    def test_those_of_the_last_90_days_stay_whatever_the_services_ask_for(
        self, owner: Owner
    ) -> None:
        with db.transaction() as session:
            keys.create(session, owner, name="k", scopes=list(Scope), expires_at=None)
        before = self.left()
        self.aged(89)
        with db.transaction() as session:
            assert audit.forget(session, timedelta(0)) == 0
        with (
            pytest.raises(sqlalchemy.exc.DBAPIError, match="only ever added to"),
            as_owner() as session,
        ):
            session.execute(text("DELETE FROM audit_log"))
        assert self.left() == before
