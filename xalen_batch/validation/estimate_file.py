"""Estimates a stored file in other processes, and a large one on several cores."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial

from xalen_batch import storage
from xalen_batch.billing.terms import Terms
from xalen_batch.catalog import Endpoint, Model
from xalen_batch.config import settings
from xalen_batch.validation import apart, pieces
from xalen_batch.validation.estimate import Estimate, estimate
from xalen_batch.validation.lines import LineReader
from xalen_batch.validation.pieces import ByteRange, Piece
from xalen_batch.validation.pool import ReaderPool
from xalen_batch.validation.read import LARGE_BYTES, byte_ranges, in_pieces

_in_pieces = threading.Lock()


def estimate_file(
    key: str,
    *,
    endpoint: Endpoint | None,
    models: Mapping[str, Model],
    terms: Terms,
    discount_rate: Decimal,
) -> Estimate:
    """`estimate` of a file in storage.

    Raises storage.UNAVAILABLE if storage fails, and Unavailable if the work takes too long.
    """
    work = Estimating(endpoint, models, terms, discount_rate)
    size, processes = storage.size(key), settings().validation_processes
    # One estimate at a time uses several cores; those beside it have one process each.
    if processes > 1 and size > LARGE_BYTES and _in_pieces.acquire(blocking=False):
        try:
            found = work.in_pieces(key, processes)
        finally:
            _in_pieces.release()
        if found is not None:
            return found
    return apart.run(partial(work.whole, key), size=size)


@dataclass(frozen=True, slots=True)
class Estimating:
    """The work of an estimate, on a piece of a file or on all of it. It can be pickled."""

    endpoint: Endpoint | None
    models: Mapping[str, Model]
    terms: Terms
    discount_rate: Decimal

    def __call__(self, byte_range: ByteRange) -> Piece[Estimate] | None:
        found = Estimate(self.endpoint, self.discount_rate)
        add = partial(found.add, models=self.models, terms=self.terms)
        return pieces.read_lines(byte_range, LineReader(self.endpoint, self.models), add, found)

    def in_pieces(self, key: str, processes: int) -> Estimate | None:
        """The estimate of a file, read by several processes; None unless all lines are good."""
        found, ranges = Estimate(self.endpoint, self.discount_rate), list(byte_ranges(key))
        readers = ReaderPool(
            min(processes, len(ranges)),
            self,
            niceness=apart.NICENESS,
            start_timeout=apart.START_TIMEOUT,
        )
        with readers:
            if not in_pieces(ranges, self, readers, lambda content, _: found.extend(content)):
                return None
        found.end()
        return found

    def whole(self, key: str) -> Estimate:
        return estimate(
            storage.chunks(key),
            endpoint=self.endpoint,
            models=self.models,
            terms=self.terms,
            discount_rate=self.discount_rate,
        )
