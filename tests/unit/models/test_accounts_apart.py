"""Rows of an account refer only to rows of the same account and mode (docs/decisions/0019)."""

import pytest
from sqlalchemy import ForeignKeyConstraint, Table

from xalen_batch.models import Base

OWNER = {"account_id", "livemode"}
OWNED = {table.name for table in Base.metadata.sorted_tables if set(table.columns.keys()) >= OWNER}
POINTERS = [
    (table, key)
    for table in Base.metadata.sorted_tables
    for key in sorted(table.foreign_key_constraints, key=lambda key: key.column_keys)
    if table.name in OWNED and key.referred_table.name in OWNED
]


def test_there_are_such() -> None:
    assert {"batches", "files", "schedules", "invoices", "api_keys"} <= OWNED
    assert len(POINTERS) >= 8


@pytest.mark.parametrize(
    ("table", "key"), POINTERS, ids=lambda value: str(getattr(value, "name", value))
)
def test_a_pointer_has_account_and_mode_in_it(table: Table, key: ForeignKeyConstraint) -> None:
    pairs = {(element.parent.name, element.column.name) for element in key.elements}
    assert {(name, name) for name in OWNER} <= pairs


def test_a_pointer_into_a_schedule_is_of_that_schedule() -> None:
    of_runs = [
        key
        for table in Base.metadata.sorted_tables
        for key in table.foreign_key_constraints
        if key.referred_table.name == "schedule_runs" and "schedule_id" in table.columns
    ]
    assert len(of_runs) == 3
    assert all(
        ("schedule_id", "schedule_id") in {(e.parent.name, e.column.name) for e in key.elements}
        for key in of_runs
    )
