"""`xalen-batch`: registers every command, and turns exceptions into exit codes.

Commands import slow modules when they run, not here.
"""

import sys
from typing import Annotated, Any

import typer

from xalen_batch import __version__
from xalen_batch.cli import (
    accounts,
    audit,
    backends,
    batches,
    credits,
    doctor,
    explain,
    failures,
    files,
    invoices,
    keys,
    limits,
    models,
    prices,
    retry,
    run,
    schedules,
    server,
    statements,
    submit,
    up,
    validate,
    watch,
    webhooks,
)
from xalen_batch.cli.failures import ERROR, INTERRUPTED, TIMED_OUT
from xalen_batch.cli.group import Group
from xalen_batch.cli.options import examples
from xalen_batch.cli.output import print_line, safe, say


class Commands(Group):
    """Turns each exception into one line on stderr and an exit code.

    With XALEN_DEBUG=1, exceptions pass.
    """

    def make_context(self, *args: Any, **extra: Any) -> Any:
        try:
            return super().make_context(*args, **extra)
        except KeyboardInterrupt:
            say(failures.STOPPED_EARLY)
            raise typer.Exit(INTERRUPTED) from None

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            failures.silence_stdout()
            raise typer.Exit(ERROR) from None
        except KeyboardInterrupt:
            say("Stopped.")
            raise typer.Exit(INTERRUPTED) from None
        except typer.TyperException as error:
            error.message = failures.plain(error.message)
            raise
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if failures.is_debugging():
                raise
            code = failures.exit_code(error)
            is_pause = code in (TIMED_OUT, INTERRUPTED)
            say(
                f"{'' if is_pause else 'Error: '}{safe(failures.describe(error))}",
                style="yellow" if is_pause else "red",
            )
            raise typer.Exit(code) from None


app = typer.Typer(
    name="xalen-batch",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Batch inference behind the OpenAI Files and Batches API.",
    epilog=examples("xalen-batch up", "xalen-batch run requests.jsonl", "xalen-batch run --help"),
)
for part in (
    run,
    submit,
    watch,
    batches,
    retry,
    explain,
    validate,
    invoices,
    limits,
    up,
    doctor,
    audit,
    server,
):
    app.add_typer(part.commands)
app.add_typer(files.commands, name="files")
app.add_typer(schedules.commands, name="schedules")
app.add_typer(webhooks.commands, name="webhooks")
app.add_typer(models.commands, name="models")
app.add_typer(backends.commands, name="backends", rich_help_panel="Operators")
app.add_typer(prices.commands, name="prices", rich_help_panel="Operators")
app.add_typer(credits.commands, name="credits", rich_help_panel="Operators")
app.add_typer(statements.commands, name="statements", rich_help_panel="Operators")
app.add_typer(keys.commands, name="keys", rich_help_panel="Operators")
app.add_typer(accounts.commands, name="accounts", rich_help_panel="Operators")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print_line(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    # User text may have characters that the terminal's encoding lacks.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    app()
