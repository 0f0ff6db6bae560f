"""Estimate a stored file, in processes of its own: beside the requests of others, and a large one on several cores."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial

from xalen_batch import storage
from xalen_batch.catalog import Model
from xalen_batch.pipeline import pieces
from xalen_batch.pipeline.estimate import Estimate, Prices, estimate
from xalen_batch.pipeline.pieces import Piece, Place
from xalen_batch.pipeline.scan import Reader


@dataclass(frozen=True, slots=True)
class Estimating:
    """The work of an estimate, on a piece of a file or on all of it."""

    endpoint: str | None
    models: Mapping[str, Model]
    prices: Prices
    discount_rate: Decimal

    def __call__(self, place: Place) -> Piece[Estimate] | None:
        found = Estimate(self.endpoint, self.discount_rate)
        add = partial(found.add, models=self.models, prices=self.prices)
        return pieces.read_lines(place, Reader(self.endpoint, self.models), add, found)

    def whole(self, key: str) -> Estimate:
        return estimate(
            storage.chunks(key),
            endpoint=self.endpoint,
            models=self.models,
            prices=self.prices,
            discount_rate=self.discount_rate,
        )
