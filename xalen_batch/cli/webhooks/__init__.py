"""`webhooks`: tell other systems what happens, and listen on a developer's machine."""

import typer

from xalen_batch.cli.group import Group
from xalen_batch.cli.options import examples
from xalen_batch.cli.webhooks import deliveries, listen, manage

commands = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    help="Post events, such as the end of a batch, to your URL; or listen to them here.",
    epilog=examples(
        "xalen-batch webhooks create https://example.com/hooks",
        "xalen-batch webhooks test whe_0192…",
        "xalen-batch webhooks listen",
    ),
)
for part in (manage, deliveries, listen):
    commands.add_typer(part.commands)
