import pytest
from alembic import command
from alembic.util import CommandError
from sqlalchemy import NullPool, create_engine, func, select, text
from sqlalchemy.exc import OperationalError

from tests.conftest import Stores
from xalen_batch import db, migrate
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

    def test_one_that_cannot_have_its_lock_gives_up_before_everyone_waits_behind_it(
        self, stores: Stores
    ) -> None:
        migrate.migrate()
        command.downgrade(migrate.alembic(), "-1")
        owner = create_engine(db.owner_url(), poolclass=NullPool)
        with owner.connect() as holder:
            tables = holder.scalars(
                text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            ).all()
            holder.execute(text(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE"))
            with pytest.raises(OperationalError, match="lock timeout"):
                migrate.migrate()
        migrate.migrate()
        assert migrate.age() is Age.CURRENT


@pytest.mark.usefixtures("empty_database")
def test_what_was_there_before_the_tallies_is_in_them() -> None:
    command.upgrade(migrate.alembic(), "0008")
    with create_engine(db.owner_url(), poolclass=NullPool).begin() as owner:
        owner.execute(text(BEFORE_TALLIES))
    migrate.migrate()
    with db.transaction() as session:
        found = dict(session.execute(text("SELECT name, amount FROM account_tallies")).all())
    assert found == {"inbox_requests": 2, "inbox_bytes": 7, "idempotency_keys": 1}


BEFORE_TALLIES = """
INSERT INTO accounts (id, name) VALUES ('00000000-0000-0000-0000-000000000001', 'acme');
INSERT INTO schedules (id, account_id, livemode, name, definition, status)
    SELECT '00000000-0000-0000-0000-000000000002', id, true, 'nightly', '{}', 'ended' FROM accounts;
INSERT INTO inbox_requests (id, schedule_id, custom_id, line)
    SELECT gen_random_uuid(), id, line, line::bytea FROM schedules, unnest(ARRAY['a', 'bcde']) AS line;
INSERT INTO idempotency_keys (account_id, livemode, key, route, fingerprint, answer) SELECT id, true, 'k', '', '', '' FROM accounts;
"""
