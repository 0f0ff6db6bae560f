"""No page reads a table from end to end that grows with what is stored."""

from typing import Any

from sqlalchemy import Connection, event

from tests.integration import plans
from tests.integration.console import made
from tests.integration.console.conftest import Person
from xalen_batch import db

# Tables of a few rows each: prices and workers, of which all are read.
SMALL = {"prices", "store_mark", "workers"}


def test_every_statement_has_an_index(visitor: Person) -> None:
    """PostgreSQL plans without sequential scans where an index can serve a statement at all."""
    found = made.addresses(made.everything(visitor.caller))
    sent: list[tuple[str, Any]] = []

    def note(_: Connection, __: object, statement: str, parameters: Any, *___: object) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "WITH")):
            sent.append((statement, parameters))

    event.listen(db.engine(), "before_cursor_execute", note)
    try:
        for some in found.values():
            for address in some:
                visitor.browser.page(address)
    finally:
        event.remove(db.engine(), "before_cursor_execute", note)
    assert len(sent) > 100
    scanned = {}
    with db.engine().connect() as connection:
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        for statement, parameters in dict.fromkeys((text, repr(given)) for text, given in sent):
            given = next(
                each for text, each in sent if (text, repr(each)) == (statement, parameters)
            )
            explained = connection.exec_driver_sql(
                f"EXPLAIN (FORMAT JSON) {statement}", given
            ).scalar_one()
            tables = plans.scanned(explained[0]["Plan"]) - SMALL
            if tables:
                scanned[statement] = tables
    assert scanned == {}
