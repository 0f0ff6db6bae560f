"""Erasures: deleted output files whose answers are still being erased."""

from uuid import UUID

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch.models.base import Base


class Erasure(Base):
    """Written with the file's deletion, removed with its last answer."""

    __tablename__ = "erasures"

    file_id: Mapped[UUID] = mapped_column(ForeignKey("files.id"), primary_key=True)
    # The last line that was looked at; lines are numbered from 1.
    line_no: Mapped[int]
