"""Notes: an index of the metadata of batches, by pairs of a key and a value."""

from uuid import UUID

from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch.models.base import Base


class BatchNote(Base):
    """One pair of a listed batch's metadata. A trigger inserts it with the batch."""

    __tablename__ = "batch_notes"

    account_id: Mapped[UUID] = mapped_column(primary_key=True)
    livemode: Mapped[bool] = mapped_column(primary_key=True)
    # `metadata_pair(key, value)`, a hash.
    pair: Mapped[UUID] = mapped_column(primary_key=True)
    batch_id: Mapped[UUID] = mapped_column(primary_key=True)
