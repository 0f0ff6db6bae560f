"""List prices over time: the table keeps their history, and a sync adopts the catalog's prices."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import DateTime, bindparam, func, insert, select, text, update
from sqlalchemy.orm import Session

from xalen_batch import catalog, ids, log
from xalen_batch.models import Price, workers
from xalen_batch.models.base import table_of

logger = log.get(__name__)

# Key of the advisory lock of a sync.
SYNC_LOCK = 7261958

Snapshot = dict[str, dict[str, str]]
Key = tuple[str, str, bool]


class Change(NamedTuple):
    """A price that differs between the table and the catalog.

    `old`, `new`: USD per million tokens in the table and in the catalog; None: no price.
    """

    model: str
    component: str
    livemode: bool
    old: Decimal | None
    new: Decimal | None


class Refused(Exception):
    """A sync that is not made; the message says why."""


class Outdated(Refused):
    """The prices or the catalog have changed since the changes were shown."""


class NotCharged(Refused):
    """A live worker does not charge a component that would get a price."""


def differences(session: Session) -> list[Change]:
    """The changes that a sync would make, in both modes, by model."""
    listed, rows = _listed(), _open_rows(session)
    found = [
        Change(*key, old=rows[key].usd_per_million if key in rows else None, new=listed.get(key))
        for key in sorted(rows.keys() | listed)
    ]
    return [change for change in found if change.old != change.new]


def closings(changes: Iterable[Change], *, named: Collection[str] = ()) -> list[Change]:
    """The changes that leave a component without a price, except of the `named` models."""
    return [change for change in changes if change.new is None and change.model not in named]


def sync(session: Session, changes: Sequence[Change]) -> None:
    """Apply the result of `differences`: close the old prices, and open the new ones.

    Batches that exist keep their prices. Raises Outdated, and changes nothing, unless `changes` are
    exactly the current differences; NotCharged, while a live worker of another version would charge
    cached input as other input; Refused, if a price that would change has an upcoming change.
    """
    # Serializes syncs, so that each compares with the prices that the previous one committed.
    session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": SYNC_LOCK})
    if differences(session) != list(changes):
        raise Outdated(
            "Prices or catalog changed meanwhile, and nothing was done: look at the differences"
            " once more."
        )
    refuse_uncharged(session, changes)
    _refuse_upcoming(session, changes)
    # clock_timestamp() after the lock, not now(): the transaction may have begun before another
    # sync opened a price.
    at = session.execute(select(func.clock_timestamp())).scalar_one()
    rows = _open_rows(session)
    for change in changes:
        if change.old is not None:
            _close(session, rows[change[:3]], at)
        if change.new is not None:
            _open(session, change, change.new, at)


def _refuse_upcoming(session: Session, changes: Iterable[Change]) -> None:
    keys = {change[:3] for change in changes}
    rows = session.scalars(select(Price).where(Price.valid_from > func.clock_timestamp()))
    for row in rows:
        if (row.model, row.component, row.livemode) in keys:
            raise Refused(
                f"Nothing was changed: {row.model} has a price of {row.component} that begins at"
                f" {row.valid_from:%Y-%m-%d %H:%M:%S} UTC. Cancel it first: xalen-batch prices"
                f" cancel {row.model}"
            )


def refuse_uncharged(session: Session, changes: Iterable[Change]) -> None:
    """Raise NotCharged if a live worker does not charge a component that gets a price."""
    opened = {change.component for change in changes if change.new is not None}
    for worker in workers.live(session):
        if missing := opened - set(worker.components or ("input", "output")):
            raise NotCharged(
                f"Nothing was changed: the worker {worker.id} runs a version that charges no"
                f" {min(missing)}, and would charge it as other input. Upgrade all workers first."
            )


def fill(session: Session) -> None:
    """Insert the catalog's prices into an empty table; do nothing if it has any row."""
    session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": SYNC_LOCK})
    if session.scalar(select(Price.id).limit(1)) is None:
        sync(session, differences(session))


def unpriced(session: Session) -> list[str]:
    """The catalog's models without a price in one of the modes; batches cannot name them there."""
    rows = _open_rows(session)
    priced = [{key[0] for key in rows if key[2] is livemode} for livemode in (False, True)]
    return sorted(
        model for model in catalog.models() if not all(model in models for models in priced)
    )


def _listed() -> dict[Key, Decimal]:
    return {
        (model.id, component, livemode): price
        for model in catalog.models().values()
        for component, price in model.price
        if price is not None
        for livemode in (False, True)
    }


def _open_rows(session: Session) -> dict[Key, Price]:
    """The prices in force now, by model, component and mode."""
    return {
        (price.model, price.component, price.livemode): price
        for price in session.scalars(
            select(Price).where(
                Price.valid_from <= func.clock_timestamp(),
                Price.valid_to.is_(None) | (Price.valid_to > func.clock_timestamp()),
            )
        )
    }


def _close(session: Session, price: Price, at: datetime) -> None:
    session.execute(update(Price).where(Price.id == price.id).values(valid_to=at))
    logger.info(
        "price.closed", model=price.model, component=price.component, livemode=price.livemode
    )


def _open(session: Session, change: Change, price: Decimal, at: datetime) -> None:
    row = {
        "model": change.model,
        "component": change.component,
        "livemode": change.livemode,
        "usd_per_million": price,
    }
    session.execute(insert(Price).values(id=ids.new(), valid_from=at, **row))
    logger.info("price.opened", **(row | {"usd_per_million": str(price)}))


def in_force(
    session: Session, *, livemode: bool, at: datetime | None = None
) -> dict[str, dict[str, Decimal]]:
    """{model: {component: USD per million tokens}} at a time; None: now.

    Models and components without a price are left out.
    """
    found: dict[str, dict[str, Decimal]] = {}
    for model, component, price in session.execute(_IN_FORCE, {"livemode": livemode, "at": at}):
        found.setdefault(model, {})[component] = price
    return found


# Built once, since every new batch runs it. clock_timestamp(), not now(), which is the beginning of
# the transaction: prices that this transaction opened are in force.
_AT = func.coalesce(bindparam("at", type_=DateTime(timezone=True)), func.clock_timestamp())
_PRICES = table_of(Price).c
_IN_FORCE = (
    select(_PRICES.model, _PRICES.component, _PRICES.usd_per_million)
    .where(
        _PRICES.livemode == bindparam("livemode"),
        _PRICES.valid_from <= _AT,
        _PRICES.valid_to.is_(None) | (_PRICES.valid_to > _AT),
    )
    .order_by(_PRICES.model, _PRICES.component)
)


def snapshot(session: Session, *, livemode: bool, models: Iterable[str]) -> Snapshot:
    """The prices of models now, to be frozen in a batch: {model: {component: "0.02"}}.

    Models without a price are left out: lines that name them are refused.
    """
    prices = in_force(session, livemode=livemode)
    return {
        model: {component: f"{price:f}" for component, price in prices[model].items()}
        for model in sorted(set(models))
        if model in prices
    }


def history(session: Session) -> Sequence[Price]:
    """All prices, past, in force and upcoming, by model, component, mode and time."""
    return session.scalars(
        select(Price).order_by(Price.model, Price.component, Price.livemode, Price.valid_from)
    ).all()
