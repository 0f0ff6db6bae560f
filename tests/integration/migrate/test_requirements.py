"""A database that cannot be migrated is refused unchanged, with all missing requirements."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.engine import make_url

from tests.conftest import Stores, forget
from xalen_batch import migrate
from xalen_batch.errors import ConfigError
from xalen_batch.migrate import requirements
from xalen_batch.migrate.requirements import Facts

NAME, ROLE = "latin", "visitor"
MET = Facts(16, "16.4", "xalen", "xalen", "UTF8", False, "public", True, True, False, True, True)


@pytest.fixture
def poor(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a database in another encoding, with a role that may only connect."""
    names = {"database": sql.Identifier(NAME), "role": sql.Identifier(ROLE)}

    def run(*statements: str, address: str = stores.migrate_database_url) -> None:
        with psycopg.connect(address, autocommit=True) as server:
            for statement in statements:
                server.execute(sql.SQL(statement).format(**names))

    run(
        "CREATE ROLE {role} LOGIN PASSWORD 'visitor'",
        "CREATE DATABASE {database} ENCODING 'SQL_ASCII' LOCALE_PROVIDER 'libc' LOCALE 'C' TEMPLATE"
        " template0",
        "REVOKE CREATE ON DATABASE {database} FROM PUBLIC",
    )
    address = make_url(stores.migrate_database_url).set(database=NAME)
    # PostgreSQL 14 lets everybody create there.
    run(
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        address=address.render_as_string(hide_password=False),
    )
    visiting = address.set(username=ROLE, password="visitor").render_as_string(hide_password=False)
    monkeypatch.setenv("XALEN_MIGRATE_DATABASE_URL", visiting)
    forget()
    yield visiting
    monkeypatch.undo()
    forget()
    run("DROP DATABASE {database} WITH (FORCE)", "DROP ROLE {role}")


def test_all_that_a_database_lacks_is_said_at_once_and_nothing_is_changed(poor: str) -> None:
    with pytest.raises(ConfigError) as refused:
        migrate.migrate()
    said = str(refused.value)
    for words in (
        f"The database {NAME} has the encoding SQL_ASCII",
        (
            f"The role {ROLE} may create no tables in the schema public: GRANT CREATE ON SCHEMA"
            f" public TO {ROLE}."
        ),
        (
            f"The role {ROLE} may not make the extension btree_gist: GRANT CREATE ON DATABASE"
            f" {NAME} TO {ROLE}."
        ),
    ):
        assert words in said
    with psycopg.connect(poor) as connection:
        assert migrate.lacks() == requirements.missing(requirements.look(connection))
        assert connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        ).fetchone() == (0,)


def test_the_tests_own_database_has_what_it_needs(database: str) -> None:
    assert migrate.lacks() == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            MET._replace(version=13, version_name="13.9"),
            "PostgreSQL 13.9 is too old: 14 or later is needed.",
        ),
        (
            MET._replace(is_extension_available=False),
            "The server has no extension btree_gist: install PostgreSQL's contrib modules",
        ),
        (MET._replace(is_read_only=True), "The server only reads"),
        (MET._replace(schema=None, may_create=False), "names no schema that exists"),
        (MET._replace(may_make_functions=False), "GRANT USAGE ON LANGUAGE plpgsql TO xalen."),
    ],
)
def test_each_need_has_a_sentence_with_its_remedy(found: Facts, words: str) -> None:
    assert requirements.missing(MET) == []
    [said] = requirements.missing(found)
    assert words in said


def test_rights_that_only_a_migration_needs_are_not_missed_behind_it() -> None:
    serving = MET._replace(
        has_extension=True, may_create=False, may_make_functions=False, may_make_extension=False
    )
    assert requirements.missing(serving, is_migrated=True) == []
    assert len(requirements.missing(serving)) == 2
