"""`schedules`: what runs by the clock."""

import typer

from xalen_batch.cli import schedule_add, schedule_create, schedule_list, schedule_pause, schedule_preview, schedule_runs
from xalen_batch.cli.options import examples

commands = typer.Typer(
    no_args_is_help=True,
    help="Run batches by the clock: every night, without a cron server.",
    epilog=examples(
        'xalen-batch schedules create tickets --cron "30 2 * * *" --template tickets.jsonl',
        "xalen-batch schedules list",
    ),
)
for part in (schedule_create, schedule_list, schedule_runs, schedule_preview, schedule_add, schedule_pause):
    commands.add_typer(part.commands)
