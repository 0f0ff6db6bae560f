"""The store mark: the id that the storage folder of this database holds (docs/decisions/0032)."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import func
from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch.models.base import Base


class StoreMark(Base):
    """A table of one row. A migration generates the id, so a copy of the database has the same."""

    __tablename__ = "store_mark"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    # When an API process wrote the id into the store; null before that.
    placed_at: Mapped[datetime | None]
