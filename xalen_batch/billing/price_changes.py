"""Prices that begin in the future: set, listed, and cancelled until they begin.

They are rows of `prices` from the moment they are set, so every process of every version charges
them from the exact time on, and nothing has to happen then (docs/decisions/0078).
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import ColumnElement, func, select, text, update
from sqlalchemy.orm import Session

from xalen_batch import catalog, ids, log
from xalen_batch.billing import prices
from xalen_batch.billing.charges import COMPONENTS
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import Price

logger = log.get(__name__)

# Before a price begins: a change takes less time to commit, so no batch is created meanwhile with
# the other price.
MARGIN = timedelta(minutes=1)
LATEST = timedelta(days=3_660)


class Upcoming(NamedTuple):
    """A price of one component in one mode that has not begun.

    `old`, `new`: USD per million tokens before and after; `old` None: it had no price.
    """

    model: str
    component: str
    livemode: bool
    old: Decimal | None
    new: Decimal
    starts_at: datetime


def upcoming(session: Session, model: str | None = None) -> list[Upcoming]:
    """The prices that have not begun, of one model or of all, by model, component and mode."""
    before = {
        (mode, name, component): price
        for mode in (False, True)
        for name, listed in prices.in_force(session, livemode=mode).items()
        for component, price in listed.items()
    }
    return [
        Upcoming(
            row.model,
            row.component,
            row.livemode,
            before.get((row.livemode, row.model, row.component)),
            row.usd_per_million,
            row.valid_from,
        )
        for row in _rows(session, model)
    ]


def schedule(
    session: Session, model: str, new: Mapping[str, Decimal], starts_at: datetime
) -> list[Upcoming]:
    """Let prices of a model begin at a time, in both modes; batches created before it keep theirs.

    `new`: {component: USD per million tokens}. Raises InvalidRequest for an unknown model or
    component, a time that is less than MARGIN ahead, or a component with an upcoming price;
    NotCharged, while a live worker does not charge a component.
    """
    _check(model, new)
    _lock(session)
    now = session.execute(select(func.clock_timestamp())).scalar_one()
    if not now + MARGIN <= starts_at <= now + LATEST:
        raise InvalidRequest(
            f"from: {starts_at:%Y-%m-%d %H:%M:%S %Z} is not at least a minute and at most 10 years"
            " ahead. For a price from now on, change the catalog and use `prices sync`.",
            param="from",
        )
    for row in _rows(session, model):
        if row.component in new:
            raise InvalidRequest(
                f"{model} has a price of {row.component} that begins at"
                f" {row.valid_from:%Y-%m-%d %H:%M:%S} UTC. Cancel it first:"
                f" xalen-batch prices cancel {model}",
                param="model",
            )
    changes = [
        prices.Change(model, component, livemode, None, price)
        for component, price in new.items()
        for livemode in (False, True)
    ]
    prices.refuse_uncharged(session, changes)
    for change in changes:
        session.execute(
            update(Price)
            .where(*_of(change.model, change.component, change.livemode), Price.valid_to.is_(None))
            .values(valid_to=starts_at)
        )
        session.add(
            Price(
                id=ids.new(),
                model=model,
                component=change.component,
                livemode=change.livemode,
                usd_per_million=change.new,
                valid_from=starts_at,
            )
        )
        session.flush()
    logger.info("prices.scheduled", model=model, starts_at=starts_at.isoformat())
    return [each for each in upcoming(session, model) if each.component in new]


def cancel(session: Session, model: str) -> list[Upcoming]:
    """Cancel the upcoming prices of a model, and return them; the prices in force go on.

    Raises InvalidRequest if there is none, or if one of them begins in less than MARGIN.
    """
    _lock(session)
    found = upcoming(session, model)
    if not found:
        raise InvalidRequest(f"{model} has no upcoming price.", param="model")
    now = session.execute(select(func.clock_timestamp())).scalar_one()
    soonest = min(each.starts_at for each in found)
    if soonest < now + MARGIN:
        raise InvalidRequest(
            f"A price of {model} begins at {soonest:%Y-%m-%d %H:%M:%S} UTC, in less than a minute:"
            " batches may already have it. Set another one behind it, or use `prices sync`.",
            param="model",
        )
    for row in _rows(session, model):
        session.delete(row)
        session.flush()
        session.execute(
            update(Price)
            .where(*_of(row.model, row.component, row.livemode), Price.valid_to == row.valid_from)
            .values(valid_to=None)
        )
    logger.info("prices.cancelled", model=model)
    return found


def _rows(session: Session, model: str | None) -> list[Price]:
    rows = select(Price).where(Price.valid_from > func.clock_timestamp())
    if model is not None:
        rows = rows.where(Price.model == model)
    return list(session.scalars(rows.order_by(Price.model, Price.component, Price.livemode)).all())


def _of(model: str, component: str, livemode: bool) -> tuple[ColumnElement[bool], ...]:
    return (Price.model == model, Price.component == component, Price.livemode == livemode)


def _lock(session: Session) -> None:
    """Wait for other changes of prices, so that each sees what the one before it committed."""
    session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": prices.SYNC_LOCK})


def _check(model: str, new: Mapping[str, Decimal]) -> None:
    if model not in catalog.models():
        raise InvalidRequest(
            f"model: the catalog has no {model!r}. `xalen-batch prices` lists its models.",
            param="model",
        )
    for component, price in new.items():
        if component not in COMPONENTS:
            raise InvalidRequest(
                f"{component!r} is no component of a price. Write one of {', '.join(COMPONENTS)}.",
                param="price",
            )
        if not price.is_finite() or price < 0 or int(price.as_tuple().exponent) < -12:
            raise InvalidRequest(
                f"{component}: write USD per million tokens, 0 or more, with at most 12 digits"
                " behind the point.",
                param="price",
            )
    if not new:
        raise InvalidRequest("Name at least one price, such as input=0.03.", param="price")
