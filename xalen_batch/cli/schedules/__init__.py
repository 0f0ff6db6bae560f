"""`schedules`: batches by the clock."""

import typer

from xalen_batch.cli.options import examples
from xalen_batch.cli.schedules import add, create, pause, preview, runs, show
from xalen_batch.cli.schedules.errors import Schedules

commands = typer.Typer(
    cls=Schedules,
    no_args_is_help=True,
    help="Run batches by the clock: every night, without a cron server.",
    epilog=examples(
        'xalen-batch schedules create tickets --cron "30 2 * * *" --template tickets.jsonl',
        "xalen-batch schedules list",
    ),
)
for part in (create, show, runs, preview, add, pause):
    commands.add_typer(part.commands)
