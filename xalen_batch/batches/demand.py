"""Demand: the lines that workers have left to run, by model and by the time until their deadline.

The view `demand` (migration 0037) is the stable interface for autoscalers that ask PostgreSQL.
"""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.orm import Session


class Demand(NamedTuple):
    """Lines without a result, of batches in progress.

    `due`: the time left until the batches' deadline, one of DUE. `is_open`: false while their
    execution window is closed. `input_tokens`: by our estimate. `oldest`: when the oldest of the
    batches was created.
    """

    model: str
    livemode: bool
    due: str
    is_open: bool
    batches: int
    lines: int
    input_tokens: int
    oldest: datetime


# Values of `due`, each without the lines of those before it.
DUE = ("overdue", "1h", "6h", "24h", "later")


def of_all(session: Session) -> list[Demand]:
    """The demand of all accounts. Reads the open tasks alone."""
    return [Demand(*row) for row in session.execute(_DEMAND)]


_DEMAND = text(
    "SELECT model, livemode, due, is_open, batches, lines, input_tokens, oldest FROM demand"
    " ORDER BY model, livemode, due, is_open"
)
