"""`invoice`, `invoices`, `statement`, `reconcile`: amounts as the API sends them."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer
from rich.console import Console

from xalen_batch.cli import database, progress, tables
from xalen_batch.cli.client import ApiOptions
from xalen_batch.cli.download import STDOUT as STDOUT_FILE
from xalen_batch.cli.failures import ERROR, USAGE, Failed
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import BatchId, Json, examples
from xalen_batch.cli.output import STDOUT, counted, figure, print_json, print_list, safe, say, show
from xalen_batch.cli.stacked import Layout, stacked

# Most lines of a statement that the API sends in one page.
PAGE_LINES = 1_000
# The `reason` of lines whose tokens the server counted.
COUNTED = "usage_counted"
# In the description of a line some of whose tokens were cached, without a price of their own.
CACHED = "cached, at the input price"
INVOICE: tuple[Layout, ...] = (
    (("item",), ("component",), ("quantity",), ("unit price",), ("amount",)),
    (("item", "component"), ("quantity", "unit price"), ("amount",)),
)
STATEMENT: tuple[Layout, ...] = ((("item",), ("amount",)),)
DIFFERENCES: tuple[Layout, ...] = (
    (("where",), ("what",), ("expected",), ("found",)),
    (("where", "what"), ("expected", "found")),
)

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "xalen-batch invoice batch_0192…",
        "xalen-batch invoice batch_0192… --json | jq -r .total",
        "xalen-batch invoice batch_0192… --lines lines.csv",
        "xalen-batch invoice batch_0192… --pdf invoice.pdf",
    ),
)
@with_option_groups
def invoice(
    batch_id: BatchId,
    lines: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=(
                "Write each line with its tokens, prices, discount and amount as CSV to this file;"
                " - for stdout."
            ),
        ),
    ] = None,
    pdf: tables.Pdf = None,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """Show the exact invoice of a batch that has ended; or, with --lines, write its lines as CSV.

    The amounts of the lines sum to the total.
    """
    if sum((lines is not None, pdf is not None, as_json)) > 1:
        raise Failed("--lines, --pdf and --json exclude each other. Give one of them.", USAGE)
    client = api.connect()
    if lines is not None:
        tables.fetch(client, f"/batches/{batch_id}/invoice/lines.csv", lines)
        return
    if pdf is not None:
        tables.fetch(client, f"/batches/{batch_id}/invoice/pdf", pdf)
        return
    found = client.get(f"/batches/{batch_id}/invoice")
    if as_json:
        print_json(found)
    else:
        print_invoice(found)


@commands.command(
    "invoices",
    epilog=examples(
        "xalen-batch invoices > invoices.csv",
        "xalen-batch invoices --from 2026-01 --to 2026-12 -o year.csv",
        "xalen-batch invoices --metadata cost_center --live",
    ),
)
@with_option_groups
def invoices_csv(
    first: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="YYYY-MM", help="The first month, UTC; this one if not given."
        ),
    ] = None,
    last: Annotated[
        str | None,
        typer.Option("--to", metavar="YYYY-MM", help="The last month; the first if not given."),
    ] = None,
    metadata: tables.Metadata = None,
    output: tables.Output = STDOUT_FILE,
    *,
    api: ApiOptions,
) -> None:
    """Write the batch invoices of some months as CSV."""
    begin = _month(first)
    end = begin if last is None else _month(last)
    query = [("from", begin), ("to", end), *(("metadata", key) for key in metadata or ())]
    tables.fetch(api.connect(), f"/invoices.csv?{urlencode(query)}", output)


def print_invoice(found: dict[str, Any], console: Console = STDOUT) -> None:
    """Print model, component, quantity, unit price and amount of each line, then the total."""
    console.print(f"Invoice {found['id']}{_mode(found)}", style="bold", soft_wrap=True)
    console.print(f"Batch {found['batch_id']}", soft_wrap=True)
    if schedule := found.get("schedule"):
        console.print(f"Schedule {safe(schedule['name'])} ({schedule['id']})", soft_wrap=True)
    if found["livemode"] and (
        simulated := sorted(
            {line["model"] for line in found["lines"] if line.get("answered_by") == "simulated"}
        )
    ):
        console.print(
            f"Answers of {', '.join(map(safe, simulated))} were simulated.",
            style="yellow",
            soft_wrap=True,
        )
    rows = [
        *map(_invoice_row, found["lines"]),
        ("total", "", "", found["currency"], found["total"]),
    ]
    show(
        stacked(
            INVOICE,
            rows,
            right=("quantity", "unit price", "amount"),
            folded=("item",),
            has_total=True,
            console=console,
        ),
        console,
    )
    _say_counted(found["lines"], console)
    for line in found["lines"]:
        if CACHED in line["description"]:
            console.print(f"{safe(line['description'])}.", soft_wrap=True)


def _invoice_row(line: dict[str, Any]) -> tuple[str, ...]:
    quantity, amount = _quantity(line["quantity"]), line["amount"]
    match line["kind"]:
        case "usage":
            return line["model"], _component(line), quantity, f"{line['unit_price']} per 1M", amount
        case "not_billed" if line["component"] is None:
            return (
                line["description"],
                line["reason"],
                f"{quantity} request{'' if quantity == '1' else 's'}",
                "not billed",
                amount,
            )
        case "not_billed":
            return (
                line["model"],
                line["component"],
                quantity,
                f"not billed: {line['reason']}",
                amount,
            )
    return line["description"], "", "", "", amount


def _component(line: dict[str, Any]) -> str:
    return f"{line['component']}, counted" if line["reason"] == COUNTED else str(line["component"])


def _say_counted(lines: Iterable[dict[str, Any]], console: Console) -> None:
    """Explain the mark on lines whose tokens the server counted, on stderr."""
    if any(line.get("reason") == COUNTED for line in lines):
        console.print(
            "counted: the model backend reported no usable usage, so xalen-batch counted the"
            " tokens.",
            soft_wrap=True,
        )


def _quantity(quantity: str | None) -> str:
    return figure(int(quantity)) if quantity is not None and quantity.isdigit() else quantity or ""


def _mode(found: dict[str, Any]) -> str:
    return "" if found["livemode"] else " (test mode, not payable)"


@commands.command(
    epilog=examples(
        "xalen-batch statement",
        "xalen-batch statement 2026-11 --live",
        "xalen-batch statement 2026-11 --limit 100",
        "xalen-batch statement 2026-11 --pdf statement.pdf",
        "xalen-batch statement 2026-11 --json | jq -r .total",
    ),
)
@with_option_groups
def statement(
    month: Annotated[
        str | None, typer.Argument(metavar="YYYY-MM", help="The month, UTC; this one if not given.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=PAGE_LINES,
            metavar="N",
            help="Most lines to show, the oldest first; all if not given.",
        ),
    ] = None,
    pdf: tables.Pdf = None,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """Show the statement of a month: its batch invoices, rounded once.

    A draft until the month is over.
    """
    wanted = _month(month)
    client = api.connect()
    if pdf is not None:
        tables.fetch(client, f"/statements/{wanted}/pdf", pdf)
        return
    found = client.get(f"/statements/{wanted}", limit=limit)
    if as_json:
        print_json(found)
        return
    STDOUT.print(
        f"Statement {found['month']}, {found['status']}{_mode(found)}", style="bold", soft_wrap=True
    )
    rows = list(map(_statement_row, found["lines"]))
    # The first page of a draft has no total.
    has_total = found["total"] is not None
    if has_total:
        rows.append((f"total {found['currency']}", found["total"]))
    show(stacked(STATEMENT, rows, right=("amount",), folded=("item",), has_total=has_total))
    _say_counted(found["lines"], STDOUT)
    if found.get("has_more"):
        say(
            f"These are the oldest {figure(len(found['lines']))} lines. Without --limit, all are"
            " shown.",
            style="dim",
        )


def _statement_row(line: dict[str, Any]) -> tuple[str, str]:
    return (
        f"{line['description']}{', counted' if line.get('reason') == COUNTED else ''}",
        line["amount"],
    )


def _month(text: str | None) -> str:
    if text is None:
        return f"{datetime.now(UTC):%Y-%m}"
    try:
        return f"{datetime.strptime(text, '%Y-%m').replace(tzinfo=UTC):%Y-%m}"
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a month. Write it as 2026-11.", param_hint="YYYY-MM"
        ) from None


@commands.command(
    rich_help_panel="Operators",
    epilog=examples(
        "xalen-batch reconcile",
        "xalen-batch reconcile --json",
        "xalen-batch reconcile --after batch_0198c3…",
        "xalen-batch reconcile --files",
    ),
)
def reconcile(
    after: Annotated[
        str | None,
        typer.Option(
            metavar="BATCH", help="Go on behind this batch, the last that an earlier walk checked."
        ),
    ] = None,
    files: Annotated[
        bool,
        typer.Option("--files", help="Also look for the object of each file, as after a restore."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Derive every charge, invoice and count again from the lines of batches.

    It walks through the batches by age, in short transactions, then through the statements. Exit 1
    on any difference (operators).
    """
    differences = [*_differences(after), *(_lost_files() if files else ())]
    if as_json:
        print_list(differences)
    elif differences:
        show(
            stacked(
                DIFFERENCES,
                [tuple(difference.values()) for difference in differences],
                folded=("what", "expected", "found"),
            )
        )
    if differences:
        say(f"{counted(len(differences), 'difference')}.", style="red")
        raise typer.Exit(ERROR)
    say("Everything agrees.", style="green")


def _differences(after: str | None) -> Iterator[dict[str, str]]:
    from xalen_batch import ids
    from xalen_batch.billing import reconcile

    position = reconcile.FIRST if after is None else ids.parse("batch", after)
    if position is None:
        raise typer.BadParameter(
            f"{after!r} is not the id of a batch. Write it as batch_0198….", param_hint="--after"
        )
    with progress.walk("batches") as checked:
        for step in reconcile.steps(database.snapshot, after=position):
            for difference in step.differences:
                yield difference._asdict()
            if step.kind == "batch" and step.checked:
                checked(step.checked, ids.render("batch", step.last))


def _lost_files() -> Iterator[dict[str, str]]:
    database.find()
    from xalen_batch import ids
    from xalen_batch.billing.reconcile import FIRST, Difference
    from xalen_batch.results import content

    position = FIRST
    with progress.walk("files") as checked:
        while looked := content.look(position):
            for id, size in looked.lost.items():
                where = ids.render("file", id)
                yield Difference(where, "object of the file", f"{size} bytes", "none")._asdict()
            position = looked.last
            checked(looked.number, ids.render("file", position))
