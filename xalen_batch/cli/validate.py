"""`validate`: the faults and the cost of a file, by the server's models and prices if known."""

from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xalen_batch.cli import batch_view, connection, inputs, rules
from xalen_batch.cli.batch_options import AUTO, Endpoint
from xalen_batch.cli.client import ApiOptions
from xalen_batch.cli.failures import ERROR, Failed, Unreachable
from xalen_batch.cli.joined import InputFiles, Joined, joined
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import STDOUT, counted, figure, print_json, say, show
from xalen_batch.cli.stacked import Layout, stacked

if TYPE_CHECKING:
    from xalen_batch.validation.estimate import Estimate

FIGURES = ("lines", "tokens in", "tokens out", "at most", "USD", "USD at most")
ESTIMATE: tuple[Layout, ...] = (
    (("model",), *((figure,) for figure in FIGURES)),
    (("model",), ("lines", "tokens in"), ("tokens out", "at most"), ("USD", "USD at most")),
)

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "xalen-batch validate requests.jsonl",
        "xalen-batch validate requests.jsonl --all --json | jq .expected_cost",
        "xalen-batch validate part-*.jsonl.gz exports/",
        "make-requests | xalen-batch validate -",
    )
)
@with_option_groups
def validate(
    files: InputFiles,
    endpoint: Endpoint = AUTO,
    show_all: Annotated[
        bool,
        typer.Option(
            "--all", help=f"Show every error, not only the first {batch_view.SHOWN_ERRORS}."
        ),
    ] = False,
    is_local: Annotated[
        bool,
        typer.Option(
            "--local", help="Ask no server: use the catalog and the settings on this machine."
        ),
    ] = False,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """Check a file and estimate its cost; exit 1 if a batch would refuse it. Nothing of the file
    leaves this machine.

    Uses the models, prices and limits of the server that the connection names, else those on this
    machine, and says which.
    """
    with joined(files) as source:
        used = rules.local() if is_local else _asked(api)
        estimate = inputs.estimated(source.path, endpoint, used)
    if as_json:
        errors = {"object": "list", "data": source.placed(estimate.faults.render())}
        print_json(estimate.render() | {"errors": errors, "checked_with": used.source})
    else:
        _print(estimate, source, show_all)
        _say_source(used)
    if not estimate.is_valid:
        raise typer.Exit(ERROR)


def _asked(api: ApiOptions) -> rules.Rules:
    """The server's rules, or those of this machine.

    The latter if no server is known, or the saved one does not run.
    """
    if not connection.is_known(api.base_url, api.api_key, api.live):
        return rules.local()
    client = api.connect()
    try:
        found = rules.of_server(client)
    except Unreachable as error:
        if connection.is_asked_for(api.base_url, api.api_key):
            raise Failed(f"{error} With --local, no server is asked.") from None
        say(f"{error} Going on without it.", style="yellow")
        return rules.local()
    if found is None:
        say(
            f"{client.connection.base_url} does not tell this key its models and prices. Going on"
            " without them.",
            style="yellow",
        )
    return found or rules.local()


def _say_source(used: rules.Rules) -> None:
    if used.is_servers:
        say(f"Checked with the {used.source}.")
    else:
        say(
            f"Checked with {used.source}. No server was asked: one may have other models, prices"
            " and limits.",
            style="yellow",
        )


def _print(estimate: "Estimate", source: Joined, show_all: bool) -> None:
    shown = None if show_all else batch_view.SHOWN_ERRORS
    name = source.name
    errors = source.placed(estimate.faults.render())
    batch_view.print_line_errors(errors, name, shown=shown, console=STDOUT)
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
        rows.append(
            (
                "total",
                figure(found["lines"]),
                *_totals(found["models"]),
                found["expected_cost"],
                found["max_cost"],
            )
        )
        show(stacked(ESTIMATE, rows, right=FIGURES))
    if estimate.is_valid:
        say(
            f"{name} is valid for {found['endpoint']}. Costs are at batch price,"
            f" {Decimal(found['discount_rate']):.0%} off the list price.",
            style="green",
        )
    else:
        hidden = (
            "" if shown is None or found["error_count"] <= shown else " --all shows every error."
        )
        say(
            f"{name} has {counted(found['error_count'], 'error')}; the API would refuse a batch of"
            f" it.{hidden}",
            style="red",
        )


def _totals(models: list[dict[str, Any]]) -> list[str]:
    return [
        figure(sum(model[name] for model in models))
        for name in ("input_tokens", "expected_output_tokens", "max_output_tokens")
    ]
