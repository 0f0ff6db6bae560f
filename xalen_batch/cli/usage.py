"""`accounts usage`, `accounts invoices`: the costs of a month of all accounts, for the operator."""

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xalen_batch.cli import database, tables
from xalen_batch.cli.download import STDOUT
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import figure, print_list, say, show
from xalen_batch.cli.stacked import Layout, stacked

if TYPE_CHECKING:
    from xalen_batch.billing.usage import MonthUsage

commands = typer.Typer()
COLUMNS: tuple[Layout, ...] = (
    (
        ("account",),
        ("mode",),
        ("batches",),
        ("tokens in",),
        ("tokens out",),
        ("USD",),
        ("open",),
        ("USD of open",),
    ),
    (("account", "mode"), ("batches", "open"), ("tokens in", "tokens out"), ("USD", "USD of open")),
)
FIGURES = ("batches", "tokens in", "tokens out", "USD", "open", "USD of open")
# The range of months that dates of PostgreSQL and of Python have in common.
FIRST, LAST = 1970, 9998


@commands.command(
    epilog=examples(
        "xalen-batch accounts usage",
        "xalen-batch accounts usage acme --month 2026-10",
        "xalen-batch accounts usage --json | jq '.data[].total'",
    )
)
def usage(
    account: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Only this account; all that have any if not given."),
    ] = None,
    month: Annotated[
        str | None, typer.Option(metavar="YYYY-MM", help="The month, UTC; this one if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what accounts used in a month: invoiced batches, and for this month the open ones so far
    (operators).

    Amounts are exact. A statement rounds its sum once, and a batch counts in the month in which it
    ends.
    """
    wanted, this = _month(month), datetime.now(UTC).date().replace(day=1)
    with database.snapshot() as session:
        from xalen_batch.accounts import accounts
        from xalen_batch.billing.usage import of_month

        name = None if account is None else accounts.named(session, account).name
        found = [
            _shown(one)
            for one in of_month(session, wanted, with_open=wanted == this)
            if name in (None, one.name)
        ]
    if as_json:
        print_list([{"month": f"{wanted:%Y-%m}", **one} for one in found])
        return
    if not found:
        say(f"Nothing was used in {wanted:%Y-%m}.")
        return
    rows = [
        (
            *(one["account"], "live" if one["livemode"] else "test", figure(one["batches"])),
            *(
                figure(one["input_tokens"]),
                figure(one["output_tokens"]),
                one["total"],
                figure(one["open_batches"]),
                one["open_total"],
            ),
        )
        for one in found
    ]
    show(stacked(COLUMNS, rows, right=FIGURES, folded=("account",)))


@commands.command(
    "invoices",
    epilog=examples(
        "xalen-batch accounts invoices --month 2026-10 > october.csv",
        "xalen-batch accounts invoices --metadata cost_center -o month.csv",
    ),
)
def month_invoices(
    month: Annotated[
        str | None, typer.Option(metavar="YYYY-MM", help="The month, UTC; this one if not given.")
    ] = None,
    metadata: tables.Metadata = None,
    output: tables.Output = STDOUT,
) -> None:
    """Write the batch invoices of a month of all accounts as CSV (operators)."""
    wanted = _month(month)
    database.find()
    from xalen_batch.billing import invoices_csv

    tables.write(invoices_csv.of_all(wanted, metadata=metadata or ()), output)


def _month(text: str | None) -> date:
    if text is None:
        return datetime.now(UTC).date().replace(day=1)
    try:
        found = datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError:
        found = None
    if found is None or not FIRST <= found.year <= LAST:
        raise typer.BadParameter(
            f"{text!r} is not a month. Write it as 2026-11.", param_hint="--month"
        )
    return found


def _shown(one: "MonthUsage") -> dict[str, Any]:
    from xalen_batch import ids, money

    return {
        "account_id": ids.render("acct", one.account_id),
        "account": one.name,
        "livemode": one.livemode,
        "batches": one.batches,
        "input_tokens": one.input_tokens,
        "output_tokens": one.output_tokens,
        "total": money.render(one.total),
        "open_batches": one.open_batches,
        "open_total": money.render(one.open_total),
        "currency": money.CURRENCY,
    }
