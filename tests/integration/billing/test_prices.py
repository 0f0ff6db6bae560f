"""Prices over time: the catalog sets the prices from now on; past prices never change."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tests.billing import Ran, running
from tests.conftest import as_owner
from tests.factories import CHAT_MODEL, EMBEDDING_MODEL, RERANK_MODEL
from xalen_batch import db, ids, migrate
from xalen_batch.billing import invoices, prices
from xalen_batch.billing.charges import COMPONENTS
from xalen_batch.cli.model_servers.prices import put_in_force
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import Price, workers

pytestmark = pytest.mark.usefixtures("database")

LISTED = {CHAT_MODEL: {"input": "0.02", "output": "0.04"}, RERANK_MODEL: {"input": "0.003"}}
MODELS = [CHAT_MODEL, RERANK_MODEL]

Reprice = Callable[[str], int]


def sync(session: Session) -> int:
    """Put the catalog's prices in force; the number of changes."""
    changes = prices.differences(session)
    prices.sync(session, changes)
    return len(changes)


@pytest.fixture
def reprice(configure: Callable[..., None], tmp_path: Path) -> Reprice:
    """Sync a catalog with these TOML lines in [models.mistral-small-3-1]; the number of changes."""

    def change(lines: str) -> int:
        file = tmp_path / "catalog.toml"
        file.write_text(f"[models.{CHAT_MODEL}]\n{lines}\n")
        configure(catalog=file)
        with db.transaction() as session:
            return sync(session)

    return change


def snapshot(*, livemode: bool = False, models: list[str] = MODELS) -> prices.Snapshot:
    with db.transaction() as session:
        return prices.snapshot(session, livemode=livemode, models=models)


@pytest.mark.parametrize("livemode", [False, True])
def test_the_catalog_is_in_force_in_both_modes(livemode: bool) -> None:
    assert snapshot(livemode=livemode) == LISTED


def test_a_model_without_a_price_is_not_in_the_snapshot() -> None:
    assert snapshot(models=["nothing", RERANK_MODEL]) == {RERANK_MODEL: {"input": "0.003"}}


def test_a_second_sync_changes_nothing() -> None:
    with db.transaction() as session:
        before = prices.history(session)
        assert sync(session) == 0
        assert prices.history(session) == before


def test_a_changed_price_closes_one_row_and_opens_another(
    reprice: Reprice, session: Session
) -> None:
    assert reprice('price = { input = "0.025" }') == 2
    assert snapshot(livemode=True)[CHAT_MODEL] == {"input": "0.025", "output": "0.04"}
    old, new = session.scalars(
        select(Price)
        .where(Price.model == CHAT_MODEL, Price.component == "input", Price.livemode)
        .order_by(Price.valid_from)
    )
    assert (old.usd_per_million, new.usd_per_million) == (Decimal("0.02"), Decimal("0.025"))
    assert old.valid_to == new.valid_from
    assert new.valid_to is None
    assert prices.in_force(session, livemode=True, at=old.valid_from)[CHAT_MODEL][
        "input"
    ] == Decimal("0.02")
    assert prices.in_force(session, livemode=True, at=new.valid_from)[CHAT_MODEL][
        "input"
    ] == Decimal("0.025")


def test_a_price_that_left_the_catalog_is_closed(
    configure: Callable[..., None], tmp_path: Path
) -> None:
    file = tmp_path / "catalog.toml"
    file.write_text(
        '[models.extra]\nname = "Extra"\nowned_by = "x"\ncategory = "compact"\nparameters ='
        ' "1B"\ncontext_window = 1000\nendpoints = ["/v1/chat/completions"]\nprice = { input = "1",'
        ' output = "2" }\n'
    )
    configure(catalog=file)
    with db.transaction() as session:
        assert sync(session) == 4
        assert prices.snapshot(session, livemode=False, models=["extra"]) == {
            "extra": {"input": "1", "output": "2"}
        }
    file.write_text(file.read_text().replace(', output = "2"', ""))
    configure(catalog=file)
    with db.transaction() as session:
        assert sync(session) == 2
    assert snapshot(models=["extra"]) == {"extra": {"input": "1"}}


def test_of_many_syncs_at_once_one_changes_the_prices(
    configure: Callable[..., None], tmp_path: Path
) -> None:
    file = tmp_path / "catalog.toml"
    file.write_text(f'[models.{CHAT_MODEL}]\nprice = {{ input = "7", output = "8" }}\n')
    configure(catalog=file)
    with db.reading() as session:
        changes = prices.differences(session)
    assert len(changes) == 4

    def change(_: int) -> bool:
        try:
            with db.transaction() as session:
                prices.sync(session, changes)
        except prices.Outdated:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(change, range(16))) == [False] * 15 + [True]
    with db.transaction() as session:
        is_open = Price.valid_to.is_(None)
        # Of each component in both modes: two of the chat model, one of each other model.
        assert session.scalar(select(func.count()).where(is_open)) == 8


def test_changes_that_were_not_shown_are_not_made(reprice: Reprice, session: Session) -> None:
    shown = prices.differences(session)
    reprice('price = { input = "9" }')
    with pytest.raises(prices.Outdated, match="nothing was done"):
        prices.sync(
            session,
            [*shown, prices.Change(CHAT_MODEL, "input", True, Decimal("0.02"), Decimal("5"))],
        )
    assert snapshot(livemode=True)[CHAT_MODEL]["input"] == "9"


def test_migrating_changes_no_price(
    configure: Callable[..., None], tmp_path: Path, session: Session
) -> None:
    before = [(price.id, price.valid_to) for price in prices.history(session)]
    file = tmp_path / "catalog.toml"
    file.write_text(f'[models.{CHAT_MODEL}]\nprice = {{ input = "7" }}\n')
    configure(catalog=file)
    migrate.migrate()
    with db.reading() as later:
        assert [(price.id, price.valid_to) for price in prices.history(later)] == before


def test_an_empty_table_is_filled_once(configure: Callable[..., None], session: Session) -> None:
    prices.fill(session)
    assert len(prices.history(session)) == 8
    session.execute(update(Price).values(valid_to=func.clock_timestamp()))
    prices.fill(session)
    assert prices.unpriced(session) == sorted([*MODELS, EMBEDDING_MODEL])


def test_a_price_change_leaves_a_batch_that_exists_alone(reprice: Reprice) -> None:
    with db.transaction() as session:
        before = running(session, [Ran(Usage(1_000_000, 0))])
    reprice('price = { input = "9" }')
    with db.transaction() as session:
        assert invoices.issue(session, before).total == Decimal("0.01")
        assert invoices.issue(
            session, running(session, [Ran(Usage(1_000_000, 0))])
        ).total == Decimal("4.5")


def test_the_database_refuses_overlapping_prices(session: Session) -> None:
    row = {
        "id": ids.new(),
        "model": CHAT_MODEL,
        "component": "input",
        "livemode": True,
        "usd_per_million": Decimal(1),
    }
    with pytest.raises(IntegrityError, match="ex_prices_no_overlap"), session.begin_nested():
        session.execute(insert(Price).values(row))


@pytest.mark.parametrize(
    "values",
    [{"usd_per_million": 1}, {"model": "x"}, {"valid_from": func.now()}, {"livemode": True}],
)
def test_the_database_refuses_to_change_a_price(database: str, values: dict[str, object]) -> None:
    with pytest.raises(IntegrityError, match="never changed but to close"), as_owner() as session:
        session.execute(update(Price).where(~Price.livemode).values(values))


def test_the_database_refuses_to_delete_a_price(database: str) -> None:
    with pytest.raises(IntegrityError, match="never deleted"), as_owner() as session:
        session.execute(delete(Price))


def test_the_database_refuses_to_open_a_closed_price_again(
    reprice: Reprice, session: Session
) -> None:
    reprice('price = { input = "0.025" }')
    with pytest.raises(IntegrityError, match="never changed but to close"), session.begin_nested():
        session.execute(update(Price).where(Price.valid_to.is_not(None)).values(valid_to=None))


def test_cached_input_gets_a_price_once_every_live_worker_charges_it(
    reprice: Reprice, session: Session
) -> None:
    """A worker of a version without the component would charge it as other input."""
    with db.transaction() as other:
        workers.seen(other, "new", components=COMPONENTS)
        workers.seen(other, "old")
    with pytest.raises(prices.NotCharged, match="the worker old runs a version"):
        reprice('price = { cached_input = "0.002" }')
    assert "cached_input" not in prices.in_force(session, livemode=True)[CHAT_MODEL]
    # Other prices may change.
    assert reprice('price = { input = "0.025" }') == 2
    with db.transaction() as other:
        workers.gone(other, "old")
    assert reprice('price = { input = "0.025", cached_input = "0.002" }') == 2
    assert snapshot()[CHAT_MODEL] == {"input": "0.025", "cached_input": "0.002", "output": "0.04"}


def test_a_model_that_is_added_is_told_of_workers_that_would_not_charge_it(
    configure: Callable[..., None], tmp_path: Path
) -> None:
    with db.transaction() as session:
        workers.seen(session, "old")
    file = tmp_path / "catalog.toml"
    file.write_text(f'[models.{CHAT_MODEL}]\nprice = {{ cached_input = "0.002" }}\n')
    configure(catalog=file)
    told = put_in_force(CHAT_MODEL)
    assert told is not None
    assert told.startswith(
        "`xalen-batch prices sync` puts its prices in force. Nothing was changed"
    )
    with db.transaction() as session:
        workers.gone(session, "old")
    assert put_in_force(CHAT_MODEL) is None
