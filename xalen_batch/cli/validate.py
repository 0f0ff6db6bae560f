"""`validate`: what a batch would refuse, and what it would cost, with no server at all."""

from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from xalen_batch.cli import batch_view, inputs
from xalen_batch.cli.failures import ERROR
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import STDOUT, counted, figure, grid, print_json, say, show

if TYPE_CHECKING:
    from xalen_batch.pipeline.estimate import Estimate

FIGURES = ("lines", "tokens in", "tokens out", "tokens out, at most", "USD", "USD, at most")

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "xalen-batch validate requests.jsonl",
        "xalen-batch validate requests.jsonl --all --json | jq .expected_cost",
        "cat part-*.jsonl | xalen-batch validate -",
    )
)
def validate(
    file: inputs.InputFile,
    endpoint: inputs.Endpoint = inputs.AUTO,
    show_all: Annotated[bool, typer.Option("--all", help=f"Show every error, not only the first {batch_view.SHOWN_ERRORS}.")] = False,
    as_json: Json = False,
) -> None:
    """Check a file and estimate its cost. Needs no server; exit 1 if a batch would refuse it."""
    with inputs.opened(file) as path:
        estimate = inputs.estimated(path, endpoint)
    if as_json:
        print_json(estimate.render())
    else:
        _print(estimate, inputs.name_of(file), show_all)
    if not estimate.is_valid:
        raise typer.Exit(ERROR)


def _print(estimate: "Estimate", name: str, show_all: bool) -> None:
    shown = None if show_all else batch_view.SHOWN_ERRORS
    batch_view.print_line_errors(estimate.faults.render(), name, shown=shown, console=STDOUT)
    found = estimate.render()
    rows = [
        (
            share["model"],
            figure(share["lines"]),
            figure(share["input_tokens"]),
            figure(share["expected_output_tokens"]),
            figure(share["max_output_tokens"]),
            share["expected_cost"],
            share["max_cost"],
        )
        for share in found["models"]
    ]
    if rows:
        rows.append(("total", figure(found["lines"]), "", "", "", found["expected_cost"], found["max_cost"]))
        show(grid(("model", *FIGURES), rows, right=FIGURES))
    if estimate.is_valid:
        say(
            f"{name} is valid for {found['endpoint']}. Costs are at batch price, {Decimal(found['discount_rate']):.0%} off the list price.",
            style="green",
        )
    else:
        say(f"{name} has {counted(found['error_count'], 'error')}; a batch of it would run nothing.", style="red")
