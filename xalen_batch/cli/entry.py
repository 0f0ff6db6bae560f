"""The console script: Ctrl-C while the commands are imported prints a message, not a traceback.

Imports little itself: each process that multiprocessing starts for a command imports this module.
"""

import sys

from xalen_batch import memory
from xalen_batch.cli.failures import INTERRUPTED, STOPPED_EARLY


def main() -> None:
    memory.spare_imports()
    try:
        from typer.main import get_command

        from xalen_batch.cli.main import app

        command = get_command(app)
    except KeyboardInterrupt:
        sys.stderr.write(f"{STOPPED_EARLY}\n")
        sys.exit(INTERRUPTED)
    command()


if __name__ == "__main__":
    main()
