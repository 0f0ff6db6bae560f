"""Estimate a stored file, in processes of its own: beside the requests of others, and a large one
on several cores.
"""

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
from xalen_batch.validation.lines import Reader
from xalen_batch.validation.pieces import Piece, Place
from xalen_batch.validation.pool import Readers
from xalen_batch.validation.read import LARGE_BYTES, in_pieces, places_of

_in_pieces = threading.Lock()


def estimate_file(
    key: str,
    *,
    endpoint: Endpoint | None,
    models: Mapping[str, Model],
    terms: Terms,
    discount_rate: Decimal,
) -> Estimate:
    """As `estimate`, of a file in storage. storage.UNAVAILABLE; Unavailable if it takes too long."""
    work, size, processes = (
        Estimating(endpoint, models, terms, discount_rate),
        storage.size(key),
        settings().validation_processes,
    )
    # Several estimates at once use the cores as they are, with a process each.
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
    """The work of an estimate, on a piece of a file or on all of it."""

    endpoint: Endpoint | None
    models: Mapping[str, Model]
    terms: Terms
    discount_rate: Decimal

    def __call__(self, place: Place) -> Piece[Estimate] | None:
        found = Estimate(self.endpoint, self.discount_rate)
        add = partial(found.add, models=self.models, terms=self.terms)
        return pieces.read_lines(place, Reader(self.endpoint, self.models), add, found)

    def in_pieces(self, key: str, processes: int) -> Estimate | None:
        """None unless all lines are good."""
        found, places = Estimate(self.endpoint, self.discount_rate), list(places_of(key))
        with Readers(
            min(processes, len(places)), self, niceness=apart.NICENESS, patience=apart.START
        ) as readers:
            if not in_pieces(places, self, readers, lambda content, _: found.extend(content)):
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
