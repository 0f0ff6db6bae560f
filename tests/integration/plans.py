"""The plans of the product's statements in PostgreSQL, and the rows and tables that they read."""

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session

from xalen_batch import db

Plan = dict[str, Any]


def of(act: Callable[[Session], object]) -> list[Plan]:
    """The plan of each statement that `act` sends, from a second run; both are rolled back."""
    sent: list[tuple[str, Any]] = []

    def note(_: Connection, __: object, statement: str, parameters: Any, *___: object) -> None:
        sent.append((statement, parameters))

    event.listen(db.engine(), "before_cursor_execute", note)
    try:
        with db.engine().connect() as connection, Session(connection) as session:
            act(session)
    finally:
        event.remove(db.engine(), "before_cursor_execute", note)
    found = []
    for statement, parameters in sent:
        with db.engine().connect() as connection:
            explained = connection.exec_driver_sql(
                f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters
            ).scalar_one()
        found.append(explained[0]["Plan"])
    return found


def nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


def scanned(plan: Plan) -> set[str]:
    """Tables that are read from end to end."""
    return {node["Relation Name"] for node in nodes(plan) if node["Node Type"] == "Seq Scan"}


def looked_into(plan: Plan) -> set[str]:
    """Tables of which anything was read."""
    return {
        node["Relation Name"]
        for node in nodes(plan)
        if "Relation Name" in node and "Scan" in node["Node Type"] and node["Actual Loops"]
    }


def pages(plan: Plan) -> int:
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
