"""The API as one application, and the server that runs it."""

import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from xalen_batch import __version__, catalog, db, disk, log, memory, migrate, storage
from xalen_batch.api import (
    batch_events,
    batches,
    billing,
    demand,
    description,
    docs,
    errors,
    estimates,
    files,
    health,
    inbox,
    keys,
    limits,
    line_schemas,
    lines,
    models,
    retries,
    schedule_runs,
    schedules,
    stored_metrics,
    terms,
    uploads,
    webhook_endpoints,
    webhooks,
)
from xalen_batch.api.anthropic import routes as message_batches
from xalen_batch.api.http import cors
from xalen_batch.api.http.bodies import Bodies
from xalen_batch.api.http.middleware import AnswerSlices, Paths, RateHeaders, RequestContext
from xalen_batch.api.http.pace import BodyPace
from xalen_batch.api.http.protocol import BoundedHttp
from xalen_batch.api.http.stopping import GracefulServer
from xalen_batch.api.live import background, calls
from xalen_batch.api.live import routes as live_routes
from xalen_batch.config import settings
from xalen_batch.endpoints.names import ENDPOINTS
from xalen_batch.metrics import server
from xalen_batch.standalone import stores
from xalen_batch.storage import marks
from xalen_batch.validation import pool

logger = log.get(__name__)

DESCRIPTION = """Batch inference behind the OpenAI Files and Batches API: point the client's
`base_url` here.
What is tagged *extensions* or *schedules* is ours and leaves OpenAI's shapes as they are."""
# Seconds. Longer than clients keep an idle connection, so the client closes it first, and no
# request meets a closed connection.
KEEP_ALIVE = 75
# Largest form of a page of the console, besides an upload.
FORM_BYTES = 64 * 1024
# Seconds after which a thread that computes releases the GIL. Python's default of 5 ms is longer
# than a short request takes.
SWITCH_INTERVAL = 0.001


def create_app() -> FastAPI:
    """The API with its routes, error handlers and middleware. Opens no connection."""
    app = FastAPI(
        title="xalen-batch",
        version=__version__,
        description=DESCRIPTION,
        # Both are ours (docs.py).
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        # Off: to find out at each request that none is configured costs 2 % of a live call's CPU.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        redirect_slashes=False,
        strict_content_type=False,
        lifespan=calls.lifespan,
        servers=description.SERVERS,
        license_info=description.LICENSE,
        generate_unique_id_function=description.operation_id,
        responses=description.ERRORS,
    )
    # Routes of the app itself, tried first: an included router costs each live call 3 % of its CPU.
    app.router.routes.extend(live_routes.router.routes)
    for router in (
        files.router,
        uploads.router,
        batches.router,
        batches.partial_router,
        retries.router,
        batch_events.router,
        lines.router,
        estimates.router,
        billing.router,
        schedules.router,
        schedule_runs.router,
        inbox.router,
        message_batches.router,
        background.router,
        models.router,
        keys.router,
        webhooks.router,
        webhooks.events_router,
        webhook_endpoints.router,
        webhook_endpoints.types_router,
        limits.router,
        terms.router,
        health.router,
        demand.router,
    ):
        app.include_router(router)
    docs.install(app)
    line_schemas.install(app)
    errors.install(app)
    app.add_middleware(AnswerSlices)
    app.add_middleware(Bodies, most=_most_bytes)
    app.add_middleware(BodyPace)
    app.add_middleware(RateHeaders)
    app.add_middleware(RequestContext)
    # Behind the context, whose errors need the headers too; a preflight request ends here.
    if settings().cors_origins:
        app.add_middleware(CORSMiddleware, **cors.options(settings().cors_origins))
    app.add_middleware(Paths)
    return app


def _most_bytes(method: str, path: str) -> int | None:
    """Most bytes of a request's body; None for an upload, whose route has its own limits."""
    match method, path.split("/")[1:]:
        case [
            "POST",
            ["v1", "files"]
            | ["v1", "uploads", _, "parts"]
            | [
                "v1",
                "messages",
                "batches",
            ],
        ]:
            return None
        case ["POST", ["v1", "batches"] | ["v1", "schedules", _, "requests"]]:
            return settings().max_inbox_bytes
        case ["POST", ["v1", *_]] if path in ENDPOINTS:
            return settings().max_line_bytes
        case ["POST", ["console", "batches", "new", "file"]]:
            return None
        case ["POST", ["console", *_]]:
            return FORM_BYTES
    return settings().max_json_bytes


def forwarding(proxies: Sequence[str]) -> dict[str, Any]:
    """uvicorn's options to trust the `X-Forwarded-For` of these proxies, and of no other client."""
    return {"proxy_headers": bool(proxies), "forwarded_allow_ips": list(proxies)}


def serve(
    host: str,
    port: int,
    *,
    sockets: Sequence[socket.socket] = (),
    extend: Callable[[FastAPI], None] = lambda _: None,
) -> None:
    """Run the API until SIGTERM or SIGINT, then answer the requests in flight within the grace.

    `sockets`: listening sockets to serve on, instead of `host` and `port`. `extend` adds further
    routes to the application.
    """
    log.configure()
    catalog.warn_of_unknown_settings()
    # Signals while uvicorn does not listen to them: before it does, and after the grace, when it
    # raises them again. The default handler would end the process before the last requests are
    # answered.
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: told.append(number))
    app = create_app()
    extend(app)
    if settings().validation_processes:
        pool.prepare()
    sys.setswitchinterval(SWITCH_INTERVAL)
    memory.settle()
    disk.watch_database(stores.database_folder)
    _mark_store()
    stored_metrics.install()
    server.start()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=BoundedHttp,
        # No WebSockets, even if a library for them is installed.
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        **forwarding(settings().trusted_proxies),
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=round(settings().shutdown_grace),
    )
    GracefulServer(config, told).run(sockets=list(sockets) or None)


def _mark_store() -> None:
    """Mark the store of a new installation, so that its workers find the mark before any upload.

    Logs a failure; uploads and `/readyz` try again.
    """
    try:
        if migrate.is_usable():
            marks.place()
    except (*storage.UNAVAILABLE, *db.UNAVAILABLE) as error:
        logger.warning("store.not_marked", error=type(error).__name__)
