"""The base class of the tables: naming of constraints, and column types of the annotations."""

from datetime import datetime
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, LargeBinary, MetaData, Numeric, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {
        str: Text,
        int: BigInteger,
        bytes: LargeBinary,
        # NUMERIC without a precision, so money keeps every digit.
        Decimal: Numeric,
        datetime: DateTime(timezone=True),
        UUID: Uuid,
        # None is stored as SQL NULL, never as the JSON value `null`.
        dict[str, Any]: JSONB(none_as_null=True),
        dict[str, str]: JSONB(none_as_null=True),
        list[dict[str, Any]]: JSONB(none_as_null=True),
    }


def table_of(model: type[Base]) -> Table:
    """The table of a model, for statements without the ORM, which run in half the time."""
    return cast(Table, model.__table__)
