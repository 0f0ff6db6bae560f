"""`statements`: sign a month off, and show later that nothing in it has changed, for operators."""

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xalen_batch.cli import database
from xalen_batch.cli.failures import ERROR
from xalen_batch.cli.group import Group
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import counted, grid, moment, print_json, print_list, say, show

if TYPE_CHECKING:
    from xalen_batch.models import SignOff

commands = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    help="Sign months off, and show that nothing in them has changed (operators).",
    epilog=examples("xalen-batch statements sign-off 2026-10", "xalen-batch statements verify"),
)

Month = Annotated[str, typer.Argument(metavar="YYYY-MM", help="The month, UTC.")]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the files.")]


@commands.command("sign-off", epilog=examples("xalen-batch statements sign-off 2026-10"))
def sign_off(month: Month, as_json: Json = False) -> None:
    """Sign a month off: fix the hashes of its invoices, credit notes, statements and audit log
    (operators).

    From then on nothing is added to it or to a month before. Note the head elsewhere: it is what
    `verify` and `verify-files` show.
    """
    with database.transaction() as session:
        from xalen_batch.billing import sign_offs

        made = _shown(sign_offs.sign_off(session, _month(month)))
    if as_json:
        print_json(made)
        return
    say(f"{made['month']} is signed off. Its head is {made['head']}.")


@commands.command("list", epilog=examples("xalen-batch statements list"))
def list_sign_offs(as_json: Json = False) -> None:
    """List the months that are signed off, with their heads (operators)."""
    with database.transaction() as session:
        from xalen_batch.billing import sign_offs

        found = [_shown(signed) for signed in sign_offs.signed_off(session)]
    if as_json:
        print_list(found)
    elif found:
        rows = [(each["month"], moment(each["signed_at"]), each["head"]) for each in found]
        show(grid(("month", "signed off", "head"), rows))
    else:
        say("No month is signed off.")


@commands.command(
    epilog=examples("xalen-batch statements verify", "xalen-batch statements verify 2026-10")
)
def verify(
    month: Annotated[
        str | None,
        typer.Argument(metavar="YYYY-MM", help="The month; all that are signed off if not given."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the database with the hashes of sign-offs (operators).

    Exit 1 on any difference.
    """
    with database.snapshot() as session:
        from xalen_batch.billing import sign_offs

        signed = (
            sign_offs.signed_off(session)
            if month is None
            else [sign_offs.find(session, _month(month))]
        )
        found = [
            each._asdict() | {"month": f"{each.month:%Y-%m}"}
            for one in signed
            for each in sign_offs.verify(session, one)
        ]
        heads = [f"{one.month:%Y-%m} {one.head}" for one in signed]
    if as_json:
        print_list(found)
    elif found:
        rows = [(each["month"], each["what"], each["expected"], each["found"]) for each in found]
        show(grid(("month", "what", "expected", "found"), rows))
    if found:
        say(f"{counted(len(found), 'difference')}.", style="red")
        raise typer.Exit(ERROR)
    for head in heads:
        say(f"{head}: nothing has changed.", style="green")


@commands.command(epilog=examples("xalen-batch statements export 2026-10 books-2026-10"))
def export(month: Month, folder: Folder, as_json: Json = False) -> None:
    """Write the books of a month that is signed off as JSONL with a manifest (operators)."""
    with database.snapshot() as session:
        from xalen_batch.billing import sign_offs

        signed = sign_offs.find(session, _month(month))
        path = sign_offs.export(session, signed, folder)
        made = _shown(signed)
    if as_json:
        print_json(made | {"manifest": str(path)})
        return
    say(f"{path} and the records of {made['month']} are written. The head is {made['head']}.")


@commands.command(
    "verify-files", epilog=examples("xalen-batch statements verify-files books-2026-10")
)
def verify_files(
    folder: Folder,
    head: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="The head that was noted when the month was signed off."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify exported books by their files alone; no database is asked. Exit 1 if they differ."""
    from xalen_batch.billing import book_files
    from xalen_batch.cli.failures import Failed

    try:
        manifest = book_files.verify(folder, head=head)
    except book_files.Invalid as error:
        raise Failed(f"{folder}: {error}") from None
    if as_json:
        print_json(manifest)
        return
    say(f"The files of {manifest['month']} agree. Their head is {manifest['head']}.", style="green")
    if head is None:
        say("Compare it with the head that was noted at the sign-off, or give --head.", style="dim")


def _month(text: str) -> date:
    from xalen_batch.billing.statements import parse_month

    return parse_month(text)


def _shown(signed: "SignOff") -> dict[str, Any]:
    return {
        "month": f"{signed.month:%Y-%m}",
        "previous": signed.previous,
        "sections": dict(signed.sections),
        "head": signed.head,
        "signed_at": int(signed.signed_at.timestamp()),
    }
