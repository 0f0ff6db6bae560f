"""The serving role on a real database: it can do its work, and cannot bypass the triggers."""

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ProgrammingError

from tests import billing
from tests.conftest import Stores, as_owner, forget
from xalen_batch import db, migrate
from xalen_batch.endpoints.usage import Usage
from xalen_batch.errors import ConfigError
from xalen_batch.migrate import rights
from xalen_batch.models import Base
from xalen_batch.standalone import stores

TABLES = rights.tables()
GUARDED = ("audit_log", "invoices", "invoice_lines")
FORBIDDEN = {
    "disable its triggers": "ALTER TABLE {0} DISABLE TRIGGER ALL",
    "switch triggers off for itself": "SET session_replication_role = replica",
    "take it over": "ALTER TABLE {0} OWNER TO xalen_serve",
    "change its columns": "ALTER TABLE {0} ADD COLUMN more text",
    "add a trigger": (
        "CREATE TRIGGER mine AFTER INSERT ON {0} FOR EACH ROW EXECUTE FUNCTION"
        " suppress_redundant_updates_trigger()"
    ),
    "add a rule": "CREATE RULE mine AS ON INSERT TO {0} DO INSTEAD NOTHING",
    "empty it": "TRUNCATE {0} CASCADE",
    "drop it": "DROP TABLE {0} CASCADE",
    "become its owner": "SET ROLE xalen",
}


@pytest.fixture
def serving(stores: Stores) -> Iterator[psycopg.Connection]:
    """A connection as a service has it; nothing is committed."""
    with psycopg.connect(stores.database_url) as connection:
        yield connection
        connection.rollback()


@pytest.mark.parametrize("statement", FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_table_and_its_triggers_are_the_owners(
    serving: psycopg.Connection, statement: str
) -> None:
    assert [table for table in TABLES if is_allowed(serving, statement.format(table))] == []


@pytest.mark.parametrize("table", TABLES)
def test_rights_cannot_be_handed_on(serving: psycopg.Connection, table: str) -> None:
    # PostgreSQL only warns of a GRANT that grants nothing.
    serving.execute(f"GRANT SELECT ON {table} TO pg_monitor")
    assert serving.execute(
        "SELECT has_table_privilege('pg_monitor', %s, 'SELECT')", [table]
    ).fetchone() == (False,)


def is_allowed(serving: psycopg.Connection, statement: str) -> bool:
    """Whether the role has the privilege for a statement, which is rolled back.

    A statement that fails for another reason counts as allowed.
    """
    try:
        with serving.transaction(force_rollback=True):
            serving.execute(statement)
    except psycopg.errors.InsufficientPrivilege:
        return False
    except psycopg.Error:
        return True
    return True


@pytest.mark.parametrize("statement", ["UPDATE {0} SET {1} = {1}", "DELETE FROM {0}"])
@pytest.mark.parametrize("table", GUARDED)
def test_what_was_issued_or_logged_stays_whatever_its_triggers_say(
    table: str, statement: str, database: str
) -> None:
    billing.ended([billing.Ran(Usage(1234, 567))])
    column = Base.metadata.tables[table].columns.keys()[-1]
    with as_owner() as session:
        before = session.execute(text(f"SELECT * FROM {table}")).all()
        assert before
        session.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER ALL"))
    try:
        with (
            psycopg.connect(database) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(statement.format(table, column))
    finally:
        with as_owner() as session:
            session.execute(text(f"ALTER TABLE {table} ENABLE TRIGGER ALL"))
    with as_owner() as session:
        assert session.execute(text(f"SELECT * FROM {table}")).all() == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE results SET amount = 0",
        "DELETE FROM results",
        "UPDATE prices SET usd_per_million = 0",
    ],
)
def test_charges_and_prices_are_not_rewritten(serving: psycopg.Connection, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        serving.execute(statement)


def test_an_audit_row_comes_from_a_change_alone(serving: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege), serving.transaction():
        serving.execute(
            "INSERT INTO audit_log (actor, action, object_id) VALUES ('key_1', 'key.created',"
            " 'key_2')"
        )
    # A table of one's own with the product's trigger on it would be a way to write any row.
    serving.execute("CREATE TEMPORARY TABLE mine (id uuid, account_id uuid, livemode boolean)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        serving.execute(
            "CREATE TRIGGER forged AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION"
            " write_audit('key', 'key', 'id')"
        )


def test_a_temporary_table_does_not_stand_in_for_the_audit_log(serving: psycopg.Connection) -> None:
    serving.execute("CREATE TEMPORARY TABLE audit_log (LIKE public.audit_log INCLUDING ALL)")
    before = serving.execute("SELECT count(*) FROM public.audit_log").fetchone()
    # The end of a price is logged at the commit.
    serving.execute("SET CONSTRAINTS ALL IMMEDIATE")
    serving.execute("UPDATE prices SET valid_to = now() WHERE valid_to IS NULL")
    assert serving.execute("SELECT count(*) FROM audit_log").fetchone() == (0,)
    assert serving.execute("SELECT count(*) FROM public.audit_log").fetchone() > before


def test_every_trigger_function_acts_as_its_owner_on_a_fixed_path(database: str) -> None:
    with as_owner() as session:
        found = session.execute(
            text(
                "SELECT proname, prosecdef, proconfig, has_function_privilege(:role, oid,"
                " 'EXECUTE') FROM pg_proc WHERE prorettype = 'trigger'::regtype AND pronamespace ="
                " 'public'::regnamespace ORDER BY 1"
            ),
            {"role": stores.SERVING},
        ).all()
    assert {"refuse_change", "write_audit"} <= {row[0] for row in found}
    assert {
        (is_definer, *configuration, may_execute)
        for _, is_definer, configuration, may_execute in found
    } == {(True, "search_path=public, pg_temp", False)}


class TestLooking:
    def test_the_serving_role_has_what_it_needs_and_no_more(self, database: str) -> None:
        with db.transaction() as session:
            assert rights.look(session) == rights.RoleRights(stores.SERVING, [], [])

    def test_a_role_that_owns_the_tables_is_told_apart(self, database: str) -> None:
        with as_owner() as session:
            found = rights.look(session)
        assert found.missing == []
        assert "owns the tables" in found.excess

    @pytest.mark.parametrize(
        ("change", "excess", "missing"),
        [
            ("REVOKE INSERT ON files FROM xalen_serve", [], ["INSERT on files"]),
            ("REVOKE UPDATE (body) ON results FROM xalen_serve", [], ["UPDATE (body) on results"]),
            ("GRANT DELETE ON audit_log TO xalen_serve", ["may DELETE audit_log"], []),
            (
                "GRANT CREATE ON SCHEMA public TO xalen_serve",
                ["may make objects in their schema"],
                [],
            ),
        ],
    )
    def test_each_right_that_differs_is_named(
        self, database: str, change: str, excess: list[str], missing: list[str]
    ) -> None:
        with as_owner() as session:
            session.execute(text(change))
            session.execute(text(f"SET LOCAL ROLE {stores.SERVING}"))
            assert rights.look(session) == rights.RoleRights(stores.SERVING, excess, missing)
            session.rollback()


@pytest.mark.usefixtures("empty_database")
class TestMigrating:
    def test_a_database_that_its_serving_role_owned_is_brought_over(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            # As an older version left it: one role, and no grants.
            db.engine().dispose()
            patch.setenv("XALEN_DATABASE_URL", db.owner_url().replace("+psycopg", ""))
            forget()
            migrate.migrate()
            with db.transaction() as session:
                assert "owns the tables" in rights.look(session).excess
            db.engine().dispose()
        forget()
        with pytest.raises(ProgrammingError), db.transaction() as session:
            session.execute(text("SELECT * FROM batches"))
        migrate.migrate()
        with db.transaction() as session:
            assert rights.look(session) == rights.RoleRights(stores.SERVING, [], [])

    def test_a_right_too_many_is_taken_back(self) -> None:
        migrate.migrate()
        with psycopg.connect(db.owner_url().replace("+psycopg", "")) as owner:
            owner.execute(f"GRANT ALL ON audit_log TO {stores.SERVING}")
        migrate.migrate()
        with db.transaction() as session:
            assert rights.look(session).excess == []

    def test_the_serving_role_alone_cannot_migrate_and_is_told_what_can(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        migrate.migrate()
        db.engine().dispose()
        monkeypatch.setenv("XALEN_MIGRATE_DATABASE_URL", db.url().replace("+psycopg", ""))
        forget()
        with pytest.raises(
            ConfigError,
            match=r"xalen_serve does not own the tables .* xalen does.* XALEN_MIGRATE_DATABASE_URL",
        ):
            migrate.migrate()

    def test_an_owner_that_is_no_superuser_grants_to_a_role_made_by_hand(
        self, stores: Stores, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = make_url(db.owner_url()).database
        with psycopg.connect(stores.migrate_database_url, autocommit=True) as server:
            server.execute("CREATE ROLE plain_owner LOGIN PASSWORD 'owning'")
            server.execute(f"ALTER DATABASE {name} OWNER TO plain_owner")
            try:
                use(
                    monkeypatch,
                    owner=("plain_owner", "owning"),
                    serving=("plain_server", "serving"),
                )
                with pytest.raises(
                    ConfigError,
                    match=(
                        r"plain_server .* plain_owner may not make it.*CREATE ROLE plain_server"
                        r" LOGIN"
                    ),
                ):
                    migrate.migrate()
                server.execute("CREATE ROLE plain_server LOGIN PASSWORD 'serving'")
                migrate.migrate()
                with db.transaction() as session:
                    assert rights.look(session) == rights.RoleRights("plain_server", [], [])
            finally:
                db.engine().dispose()
                server.execute(f"ALTER DATABASE {name} OWNER TO xalen")
                with psycopg.connect(stores.migrate_database_url, dbname=name) as inside:
                    inside.execute("DROP OWNED BY plain_owner, plain_server CASCADE")
                    inside.execute("DROP ROLE IF EXISTS plain_server, plain_owner")

    def test_a_password_of_any_characters_is_one(
        self, stores: Stores, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use(monkeypatch, owner=None, serving=("o'dd\" role", "it's; -- % a:pass@word"))
        try:
            migrate.migrate()
            with db.transaction() as session:
                assert rights.look(session) == rights.RoleRights("o'dd\" role", [], [])
        finally:
            db.engine().dispose()
            with psycopg.connect(db.owner_url().replace("+psycopg", "")) as owner:
                owner.execute('DROP OWNED BY "o\'dd"" role"; DROP ROLE "o\'dd"" role"')


def use(
    monkeypatch: pytest.MonkeyPatch, *, owner: tuple[str, str] | None, serving: tuple[str, str]
) -> None:
    """Have the settings name other roles of the same database."""
    for variable, role in (("XALEN_MIGRATE_DATABASE_URL", owner), ("XALEN_DATABASE_URL", serving)):
        if role is not None:
            address = make_url(db.owner_url()).set(
                drivername="postgresql", username=role[0], password=role[1]
            )
            monkeypatch.setenv(variable, address.render_as_string(hide_password=False))
    db.engine().dispose()
    forget()
