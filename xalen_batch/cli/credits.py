"""`credits`: credit notes on the invoices of batches, for the operator."""

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xalen_batch.cli import database
from xalen_batch.cli.group import Group
from xalen_batch.cli.options import BatchId, Json, examples
from xalen_batch.cli.output import grid, moment, print_json, print_list, say, say_more, show

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from xalen_batch.models import Batch

commands = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    help="Give back what batches were billed, as lines of the next statement (operators).",
    epilog=examples(
        'xalen-batch credits create batch_0192… --share 0.5 --reason "late by a day"',
        "xalen-batch credits list acme",
    ),
)


def _number(text: str | None) -> str | None:
    """Check a decimal number early; its range is checked with the invoice."""
    if text is not None:
        try:
            Decimal(text)
        except InvalidOperation:
            raise typer.BadParameter(f"{text!r} is no decimal number, such as 0.5.") from None
    return text


@commands.command(
    epilog=examples(
        'xalen-batch credits create batch_0192… --reason "wrong model"',
        'xalen-batch credits create batch_0192… --share 0.5 --reason "late by a day"',
        'xalen-batch credits create batch_0192… --amount 1.25 --reason "agreed" --key 4711',
    )
)
def create(
    batch_id: BatchId,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why, in one line; the statement shows it.")
    ],
    share: Annotated[
        str | None,
        typer.Option(
            metavar="RATE", callback=_number, help="Share of the invoice's total, such as 0.5."
        ),
    ] = None,
    amount: Annotated[
        str | None, typer.Option(metavar="USD", callback=_number, help="An amount, exact.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Names this credit note: the same key makes no second one of a batch.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Credit a batch: an amount, a share, or all that is left of its invoice (operators).

    It is a line of the account's next statement. Repeating the command with the same reason and
    amount makes no second credit note, unless --key differs.
    """
    with database.transaction() as session:
        from xalen_batch.billing import credit_notes

        batch = _batch(session, batch_id)
        note = credit_notes.create(
            session,
            batch,
            reason=reason,
            amount=None if amount is None else Decimal(amount),
            share=None if share is None else Decimal(share),
            key=key,
        )
        made = credit_notes.render(note)
    if as_json:
        print_json(made)
        return
    say(f"{made['id']} gives back {made['amount']} {made['currency']} of {batch_id}.")


def _batch(session: "Session", public_id: str) -> "Batch":
    from xalen_batch import ids
    from xalen_batch.errors import NotFound
    from xalen_batch.models import Batch

    id = ids.parse("batch", public_id)
    batch = None if id is None else session.get(Batch, id)
    if batch is None:
        raise NotFound(f"There is no batch {public_id}.")
    return batch


@commands.command(
    "list",
    epilog=examples("xalen-batch credits list acme", "xalen-batch credits list acme --live --json"),
)
def list_notes(
    account: Annotated[str, typer.Argument(metavar="NAME", help="The account's name.")],
    is_live: Annotated[bool, typer.Option("--live", help="Of live mode, not of test.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, metavar="N", help="Most to show.")] = 100,
    as_json: Json = False,
) -> None:
    """List the credit notes of an account, newest first (operators)."""
    with database.transaction() as session:
        from xalen_batch.accounts import accounts
        from xalen_batch.accounts.accounts import Owner
        from xalen_batch.billing import credit_notes

        owner = Owner(accounts.named(session, account).id, is_live)
        page = credit_notes.page(session, owner, limit=limit)
        found: list[dict[str, Any]] = [credit_notes.render(note) for note in page.data]
    if as_json:
        print_list(found, has_more=page.has_more)
        return
    if not found:
        say(f"{account} has no credit notes.")
        return
    rows = [
        (note["id"], note["batch_id"], moment(note["created_at"]), note["reason"], note["amount"])
        for note in found
    ]
    show(grid(("credit note", "batch", "created", "reason", "USD"), rows, right=("USD",)))
    if page.has_more:
        say_more(limit)
