"""The console's pages as routes of an application."""

from fastapi import APIRouter, FastAPI, Request, Response

from xalen_batch.console import (
    assets,
    batch,
    batches,
    files,
    go,
    invoices,
    line,
    models,
    new_batch,
    overview,
    schedules,
    settings,
    sign_in,
)
from xalen_batch.console.routes import PATH, PageRoute
from xalen_batch.errors import QUOTED_CHARS, NotFound

missing = APIRouter(prefix=PATH, route_class=PageRoute, include_in_schema=False)


@missing.get("/{rest:path}")
def no_page(request: Request, rest: str) -> Response:
    """The answer to a path of the console that no page has."""
    raise NotFound(f"There is no page {PATH}/{rest[:QUOTED_CHARS]}. Go on from the navigation.")


def install(app: FastAPI) -> None:
    """Add the pages and their assets."""
    app.mount(assets.PATH, assets.Assets(directory=assets.FOLDER))
    for router in (
        sign_in.router,
        go.router,
        overview.router,
        batches.router,
        new_batch.router,
        line.router,
        batch.router,
        schedules.router,
        files.router,
        invoices.router,
        models.router,
        settings.router,
        missing,
    ):
        app.include_router(router)
