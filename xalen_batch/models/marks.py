"""The mark of the store: which folder of input files belongs to this database."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import func
from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch.models.base import Base


class StoreMark(Base):
    """The only row. The migration makes the id, so it is the same in a copy of the database."""

    __tablename__ = "store_mark"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    # When the id was written into the store; null until the first API process has found its store.
    placed_at: Mapped[datetime | None]
