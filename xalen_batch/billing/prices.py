"""List prices over time: the catalog says what holds from now on, the table remembers what held when."""

from collections.abc import Iterable, Sequence

from sqlalchemy import func, or_, select, text
from sqlalchemy.orm import Session

from xalen_batch import catalog, ids, log, money
from xalen_batch.models import Price

logger = log.get(__name__)

SYNC_LOCK = 7261958
Snapshot = dict[str, dict[str, str]]


def sync(session: Session) -> int:
    """Make the catalog's prices the ones in force, in both modes: close what changed, open what is new. Returns the changes made."""
    session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": SYNC_LOCK})
    wanted = {
        (model.id, component, livemode): price
        for model in catalog.models().values()
        for component, price in (("input", model.price.input), ("output", model.price.output))
        if price is not None
        for livemode in (False, True)
    }
    changes = 0
    for row in session.scalars(select(Price).where(Price.valid_to.is_(None))).all():
        key = (row.model, row.component, row.livemode)
        if wanted.get(key) == row.usd_per_million:
            del wanted[key]
            continue
        row.valid_to = session.scalar(select(func.now()))
        changes += 1
        logger.info("price.closed", model=row.model, component=row.component, livemode=row.livemode)
    session.flush()
    for (model_id, component, livemode), price in wanted.items():
        session.add(Price(id=ids.new(), model=model_id, component=component, livemode=livemode, usd_per_million=price))
        changes += 1
        logger.info("price.opened", model=model_id, component=component, livemode=livemode, usd_per_million=str(price))
    session.flush()
    return changes


def snapshot(session: Session, *, livemode: bool, models: Iterable[str]) -> Snapshot:
    """The prices in force now: {model: {component: "0.02"}}, USD per million tokens. A model without a price is not in it."""
    rows = session.scalars(
        select(Price).where(
            Price.livemode == livemode,
            Price.model.in_(list(models)),
            Price.valid_from <= func.now(),
            or_(Price.valid_to.is_(None), Price.valid_to > func.now()),
        )
    )
    taken: Snapshot = {}
    for row in rows:
        taken.setdefault(row.model, {})[row.component] = money.render(row.usd_per_million)
    return taken


def history(session: Session) -> Sequence[Price]:
    """All prices there ever were, by model, component, mode and time."""
    return session.scalars(select(Price).order_by(Price.model, Price.component, Price.livemode, Price.valid_from)).all()
