"""Erasures: the progress of erasing the answers of deleted output files."""

from uuid import UUID

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch.models.base import Base


class Erasure(Base):
    """Inserted when the file is deleted, and removed with the file's last answer."""

    __tablename__ = "erasures"

    file_id: Mapped[UUID] = mapped_column(ForeignKey("files.id"), primary_key=True)
    # The number of the last line that is done, from 1; 0 before the first.
    line_no: Mapped[int]
