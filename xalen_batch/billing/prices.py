"""List prices over time: the catalog says what holds from now on, the table remembers what held when."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal

from sqlalchemy import func, insert, select, text, update
from sqlalchemy.orm import Session

from xalen_batch import catalog, ids, log
from xalen_batch.models import Price

logger = log.get(__name__)

SYNC_LOCK = 7261958

Snapshot = dict[str, dict[str, str]]


def sync(session: Session) -> int:
    """Make the catalog's prices those in force, in both modes: close what changed or went, open what is new.

    Returns the number of prices closed and opened; 0 when nothing had changed.
    """
    session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": SYNC_LOCK})
    # Read behind the lock: now() may lie before the start of a price that another process opened meanwhile.
    at = session.execute(select(func.clock_timestamp())).scalar_one()
    missing = _listed()
    changes = 0
    for price in session.scalars(select(Price).where(Price.valid_to.is_(None))).all():
        key = (price.model, price.component, price.livemode)
        if missing.get(key) == price.usd_per_million:
            del missing[key]
        else:
            _close(session, price, at)
            changes += 1
    for (model, component, livemode), usd_per_million in missing.items():
        _open(session, model, component, livemode, usd_per_million, at)
        changes += 1
    return changes


def _listed() -> dict[tuple[str, str, bool], Decimal]:
    """The catalog's prices by (model, component, livemode)."""
    return {
        (model.id, component, livemode): price
        for model in catalog.models().values()
        for component, price in (("input", model.price.input), ("output", model.price.output))
        if price is not None
        for livemode in (False, True)
    }


def _close(session: Session, price: Price, at: datetime) -> None:
    session.execute(update(Price).where(Price.id == price.id).values(valid_to=at))
    logger.info("price.closed", model=price.model, component=price.component, livemode=price.livemode)


def _open(session: Session, model: str, component: str, livemode: bool, usd_per_million: Decimal, at: datetime) -> None:
    session.execute(
        insert(Price).values(
            id=ids.new(), model=model, component=component, livemode=livemode, usd_per_million=usd_per_million, valid_from=at
        )
    )
    logger.info("price.opened", model=model, component=component, livemode=livemode, usd_per_million=str(usd_per_million))


def in_force(session: Session, *, livemode: bool, at: datetime | None = None) -> dict[str, dict[str, Decimal]]:
    """{model: {component: USD per million tokens}} at a time, or now. What has no price is not in it."""
    # Not now(), which is when the transaction began: a price opened in this very transaction holds already.
    moment = func.clock_timestamp() if at is None else at
    rows = session.scalars(
        select(Price)
        .where(Price.livemode == livemode, Price.valid_from <= moment, Price.valid_to.is_(None) | (Price.valid_to > moment))
        .order_by(Price.model, Price.component)
    )
    found: dict[str, dict[str, Decimal]] = {}
    for row in rows:
        found.setdefault(row.model, {})[row.component] = row.usd_per_million
    return found


def snapshot(session: Session, *, livemode: bool, models: Iterable[str]) -> Snapshot:
    """The prices of these models now, to be frozen in a batch: {model: {component: "0.02"}}, plain digits.

    A model without any price is left out: lines that name it are refused.
    """
    prices = in_force(session, livemode=livemode)
    return {
        model: {component: f"{price:f}" for component, price in prices[model].items()} for model in sorted(set(models)) if model in prices
    }


def history(session: Session) -> Sequence[Price]:
    """Every price there ever was, by model, component, mode and time."""
    return session.scalars(select(Price).order_by(Price.model, Price.component, Price.livemode, Price.valid_from)).all()
