"""`doctor`: runs all checks, and shows a line for each."""

import os
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from xalen_batch.cli.doctor import installation, machine, models, stores
from xalen_batch.cli.doctor.findings import CheckResult, check
from xalen_batch.cli.failures import ERROR
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import grid, print_json, show

commands = typer.Typer()


@commands.command(
    rich_help_panel="Server",
    epilog=examples(
        "xalen-batch doctor",
        "xalen-batch doctor --data-dir /srv/xalen",
        "xalen-batch doctor --json",
    ),
)
def doctor(
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The data folder of `xalen-batch up`. If not given: XALEN_DATA_DIR, or .xalen.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check Python, the data folder, the stores, the catalog and every backend.

    Exit 1 if something is wrong.
    """
    if data_dir is not None:
        # Before any check: the settings, and the services that a check asks, read the environment.
        from xalen_batch.config import settings

        os.environ["XALEN_DATA_DIR"] = str(data_dir)
        settings.cache_clear()
    checks = list(_checks())
    is_ok = all(check.status != "failed" for check in checks)
    if as_json:
        print_json({"ok": is_ok, "checks": [asdict(check) for check in checks]})
    else:
        rows = ((check.name, check.status, check.detail) for check in checks)
        show(grid(("check", "status", "finding"), rows))
    if not is_ok:
        raise typer.Exit(ERROR)


def _checks() -> Iterator[CheckResult]:
    yield check("python", machine.python)
    yield check("data folder", machine.data_folder)
    settings = check("settings", machine.settings)
    yield settings
    if settings.status == "failed":
        # All other checks read the settings.
        return
    database = check("database", stores.postgresql)
    yield database
    has_database = database.status == "ok"
    yield check("database needs", partial(installation.database_needs, has_database))
    yield check("migrations", partial(stores.migrations, has_database))
    yield check("rights", partial(installation.rights, has_database))
    redis = check("redis", stores.redis_queue)
    yield redis
    has_stores = has_database and redis.status in ("ok", "warning")
    yield check("passwords", partial(stores.store_passwords, has_stores))
    yield check("storage", machine.storage)
    yield check("store mark", partial(installation.store_mark, has_database))
    yield check("workers", partial(installation.workers, has_database))
    yield check("open batches", partial(installation.open_batches, has_database))
    yield check("sealing", partial(installation.sealing, has_database))
    yield check("webhooks", partial(installation.webhooks, has_database))
    yield check("kept", partial(installation.kept, has_database))
    yield check("disk space", machine.disk_space)
    yield check("catalog", models.catalog_models)
    yield check("prices", partial(models.catalog_prices, has_database))
    for name, look in models.backends():
        yield check(name, look)
