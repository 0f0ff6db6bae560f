import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from alembic import command
from alembic.util import CommandError
from sqlalchemy import NullPool, create_engine, func, select, text
from sqlalchemy.exc import ProgrammingError
from structlog.testing import capture_logs

from tests.waiting import PATIENCE, wait_until
from xalen_batch import db, ids, migrate
from xalen_batch.errors import ConfigError
from xalen_batch.migrate import Age
from xalen_batch.models import Price


@pytest.mark.usefixtures("empty_database")
class TestMigrations:
    def test_an_empty_database_is_not_current_until_it_is_migrated(self) -> None:
        assert migrate.age() is Age.BEHIND
        migrate.migrate()
        assert migrate.age() is Age.CURRENT

    def test_one_that_a_newer_version_migrated_is_used_and_left_alone(self) -> None:
        migrate.migrate()
        with create_engine(db.owner_url(), poolclass=NullPool).begin() as owner:
            owner.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        assert (migrate.age(), migrate.is_usable()) == (Age.NEWER, True)
        with pytest.raises(
            ConfigError,
            match=(
                r"at revision 9999, which a newer version .* Run `xalen-batch migrate` of the newer"
                r" version"
            ),
        ):
            migrate.migrate()
        assert migrate.found() == "9999"

    def test_one_that_is_behind_is_not_usable(self) -> None:
        migrate.migrate()
        command.downgrade(migrate.alembic(), "-1")
        assert (migrate.age(), migrate.is_usable()) == (Age.BEHIND, False)

    def test_the_catalogs_prices_are_there_after_migrating(self) -> None:
        migrate.migrate()
        with db.transaction() as session:
            assert session.scalar(select(func.count()).select_from(Price)) > 0

    def test_migrating_again_changes_nothing(self) -> None:
        migrate.migrate()
        with db.transaction() as session:
            before = session.execute(select(Price.id, Price.valid_to).order_by(Price.id)).all()
        migrate.migrate()
        with db.transaction() as session:
            assert (
                session.execute(select(Price.id, Price.valid_to).order_by(Price.id)).all() == before
            )

    def test_the_migrations_make_the_tables_that_the_models_describe(self) -> None:
        migrate.migrate()
        try:
            command.check(migrate.alembic())
        except CommandError as error:
            pytest.fail(str(error))

    def test_every_migration_goes_down_and_up_again(self) -> None:
        migrate.migrate()
        command.downgrade(migrate.alembic(), "base")
        with db.engine().connect() as connection:
            left = connection.scalars(
                text(
                    "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <>"
                    " 'alembic_version'"
                )
            ).all()
        assert left == []
        migrate.migrate()
        assert migrate.age() is Age.CURRENT

    def test_one_that_cannot_have_its_lock_gives_up_in_the_end_and_names_the_remedy(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(migrate, "LOCK_PATIENCE", 0.0)
        migrate.migrate()
        command.downgrade(migrate.alembic(), "-1")
        owner = create_engine(db.owner_url(), poolclass=NullPool)
        with owner.connect() as holder:
            tables = holder.scalars(
                text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            ).all()
            holder.execute(text(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE"))
            with pytest.raises(ConfigError, match=r"did not get its lock .* pg_stat_activity"):
                migrate.migrate()
        migrate.migrate()

    def test_two_at_once_wait_for_each_other_also_while_an_index_is_built(
        self,
    ) -> None:
        migrate.migrate()
        command.downgrade(migrate.alembic(), "0015")
        owner = create_engine(db.owner_url(), poolclass=NullPool)
        program = [sys.executable, "-c", "from xalen_batch import migrate; migrate.migrate()"]
        later_sessions = text(
            "SELECT count(*) FROM pg_stat_activity AS other JOIN pg_stat_activity AS own"
            " ON own.pid = pg_backend_pid() WHERE other.usename = current_user"
            " AND other.backend_start > own.backend_start AND other.query LIKE :query"
        )
        with owner.connect() as holder, owner.connect() as watch, ExitStack() as running:
            holder.execute(text("LOCK TABLE files IN SHARE UPDATE EXCLUSIVE MODE"))

            def start(query: str) -> subprocess.Popen[bytes]:
                process = running.enter_context(subprocess.Popen(program))
                running.callback(process.kill)
                wait_until(lambda: watch.scalar(later_sessions, {"query": query}), process=process)
                return process

            watch.execution_options(isolation_level="AUTOCOMMIT")
            # The second polls for the lock of the first, and commits after each look.
            both = [start("CREATE INDEX CONCURRENTLY%"), start("COMMIT%")]
            # The index waits for transactions with a snapshot, which a statement that waits has.
            holder.rollback()
            assert [process.wait(PATIENCE) for process in both] == [0, 0]
        assert migrate.age() is Age.CURRENT

    def test_one_that_waits_for_a_reader_lets_the_requests_behind_it_pass(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(migrate, "PAUSE", 0.1)
        migrate.migrate()
        # The migration behind it adds a column to `accounts`.
        command.downgrade(migrate.alembic(), "0014")
        owner = create_engine(db.owner_url(), poolclass=NullPool)
        with owner.connect() as reader, ThreadPoolExecutor(1) as pool, capture_logs() as logs:
            reader.execute(text("LOCK TABLE accounts IN ACCESS SHARE MODE"))
            running = pool.submit(migrate.migrate)
            try:
                wait_until(lambda: logs or running.done())
                with owner.connect() as request:
                    # One migration that waited without end would keep it waiting too.
                    request.execute(text("SET lock_timeout = '10s'"))
                    assert request.scalar(text("SELECT count(*) FROM accounts")) == 0
                assert not running.done()
            finally:
                reader.rollback()
            running.result(timeout=PATIENCE)
        assert {entry["event"] for entry in logs} == {"migrate.waits_for_lock"}
        assert migrate.age() is Age.CURRENT


@pytest.mark.usefixtures("empty_database")
def test_what_was_there_before_the_tallies_is_in_them() -> None:
    command.upgrade(migrate.alembic(), "0008")
    with create_engine(db.owner_url(), poolclass=NullPool).begin() as owner:
        owner.execute(text(BEFORE_TALLIES))
    migrate.migrate()
    with db.transaction() as session:
        found = dict(session.execute(text("SELECT name, amount FROM account_tallies")).all())
    assert found == {
        "inbox_requests": 2,
        "inbox_bytes": 7,
        "idempotency_keys": 1,
        "files": 2,
        "file_bytes": 12,
    }


@pytest.mark.usefixtures("empty_database")
def test_services_of_the_version_before_the_partitions_go_on_writing_rows() -> None:
    command.upgrade(migrate.alembic(), "0016")
    insert = text(
        "INSERT INTO results (batch_id, line_no, model, custom_id, status_code, amount, body)"
        " VALUES (:batch_id, 1, 'm', 'c', 200, 0, 'x')"
    )
    with create_engine(db.owner_url(), poolclass=NullPool).begin() as owner:
        owner.execute(text("GRANT SELECT, INSERT, UPDATE (body) ON results TO xalen_serve"))
        owner.execute(text("ALTER FUNCTION audit_answers() SECURITY DEFINER"))
    batches = [ids.new() for _ in range(2)]
    with db.engine().connect() as service:
        service.execute(insert, {"batch_id": batches[0]})
        service.commit()
        # No rights are granted anew: services run between the migration and the grants.
        command.upgrade(migrate.alembic(), "head")
        service.execute(insert, {"batch_id": batches[1]})
        service.execute(text("UPDATE results SET body = NULL"))
        service.commit()
        found = service.execute(text("SELECT batch_id, body FROM results ORDER BY batch_id"))
        assert found.all() == [(batch, None) for batch in batches]
        with pytest.raises(ProgrammingError, match="permission denied"):
            service.execute(text("DELETE FROM results"))
        service.rollback()
    with create_engine(db.owner_url(), poolclass=NullPool).connect() as owner:
        audited = owner.execute(
            text("SELECT action, before ->> 'lines' FROM audit_log ORDER BY object_id")
        )
        assert audited.all() == [("answers.erased", "1")] * 2
        left = owner.scalars(text("SELECT conname FROM pg_constraint WHERE conname ~ 'older'"))
        assert left.all() == []


BEFORE_TALLIES = """
INSERT INTO accounts (id, name) VALUES ('00000000-0000-0000-0000-000000000001', 'acme');
INSERT INTO schedules (id, account_id, livemode, name, definition, status)
    SELECT '00000000-0000-0000-0000-000000000002', id, true, 'nightly', '{}', 'ended' FROM accounts;
INSERT INTO inbox_requests (id, schedule_id, custom_id, line)
    SELECT gen_random_uuid(), id, line, line::bytea FROM schedules, unnest(ARRAY['a', 'bcde']) AS line;
INSERT INTO files (id, account_id, livemode, purpose, filename, bytes, deleted_at)
    SELECT gen_random_uuid(), id, true, 'batch', 'a.jsonl', size, gone
    FROM accounts, (VALUES (5, NULL), (7, NULL), (9, now())) AS file (size, gone);
INSERT INTO idempotency_keys (account_id, livemode, key, route, fingerprint, answer) SELECT id, true, 'k', '', '', '' FROM accounts;
"""


@pytest.mark.usefixtures("empty_database")
def test_batches_from_before_the_filters_are_found_by_their_metadata() -> None:
    command.upgrade(migrate.alembic(), "0023")
    with create_engine(db.owner_url(), poolclass=NullPool).begin() as owner:
        owner.execute(text(BEFORE_TALLIES))
        columns = (
            "INSERT INTO batches (id, account_id, livemode, endpoint, completion_window,"
            " price_snapshot, discount_rate, expires_at, metadata, ledger)"
            " SELECT gen_random_uuid(), id, false, '/v1/rerank', '24h', '{}', 0, now(), "
        )
        owner.execute(text(columns + """'{"a": "1", "b": "2"}', NULL FROM accounts LIMIT 1"""))
        owner.execute(text(columns + """'{"a": "1"}', 'a ledger' FROM accounts LIMIT 1"""))
    migrate.migrate()
    with db.transaction() as session:
        found = session.execute(
            text(
                "SELECT count(*), bool_or(pair = metadata_pair('a', '1')),"
                " bool_or(pair = metadata_pair('b', '2')) FROM batch_notes"
            )
        ).one()
    assert tuple(found) == (2, True, True)
