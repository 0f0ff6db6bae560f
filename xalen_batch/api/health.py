"""Liveness and readiness probes.

They use threads of their own: those of the routes may all be waiting for a store.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Literal

import obstore
from anyio import to_thread
from fastapi import APIRouter, FastAPI, Request, Response
from pydantic import BaseModel

from xalen_batch import broker, catalog, db, disk, migrate, storage
from xalen_batch.api.description import PUBLIC
from xalen_batch.config import settings
from xalen_batch.errors import ConfigError, StorageFull
from xalen_batch.storage import marks

router = APIRouter(tags=["health"])

CHECK_SECONDS = 1.0
# Database connections that the checks may use at a time: ping, schema, mark of the store, workers.
CONNECTIONS = 4


def _database() -> None:
    db.ping()


def _migrations() -> None:
    if not migrate.is_usable():
        raise ConfigError(
            "the database does not have this version's schema; run `xalen-batch migrate`"
        )


def _redis() -> None:
    broker.ping(CHECK_SECONDS)


def _storage() -> None:
    storage.store()
    marks.place()
    obstore.put(storage.store(), "health/readyz", b"ok")


def _workers() -> None:
    with db.reading() as session:
        if found := marks.differences(session):
            raise ConfigError("; ".join(found))


def _catalog() -> None:
    if catalog.has_broken_file():
        # Without the reason, which may quote the file.
        raise ConfigError(
            "the catalog file cannot be used since its last change, and the catalog before it is in"
            " force; `xalen-batch doctor` there tells why"
        )


def _disk() -> None:
    if shortages := disk.short():
        raise StorageFull(" ".join(space.message for space in shortages.values()))


CHECKS: dict[str, Callable[[], None]] = {
    "database": _database,
    "migrations": _migrations,
    "redis": _redis,
    "storage": _storage,
    "disk": _disk,
    "workers": _workers,
    "catalog": _catalog,
}
# Checks whose failure leaves the API ready, but degraded. Redis carries hints only: without it work
# starts later. On a short disk, reads and running batches go on. A worker with another file store
# claims nothing, and the others go on. A broken catalog file leaves the one before it in force.
OPTIONAL = frozenset({"redis", "disk", "workers", "catalog"})


class Alive(BaseModel):
    status: Literal["ok"]


class Check(BaseModel):
    """One store: `ms` if it is ok, `error` if it failed."""

    status: Literal["ok", "failed"]
    ms: float | None = None
    error: str | None = None


class Readiness(BaseModel):
    status: Literal["ok", "degraded", "unavailable"]
    checks: dict[str, Check]


UNREADY: dict[int | str, dict[str, Any]] = {
    503: {"model": Readiness, "description": "The API cannot work: a store that it needs failed."}
}


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, asyncio.Event]]:
    """The server's state: `stopping` is set as soon as the server is told to stop.

    Routes get fewer threads than the pool has connections, so that a check always finds a free
    connection.
    """
    threads = to_thread.current_default_thread_limiter()
    threads.total_tokens = max(1, min(threads.total_tokens, settings().pool_size - CONNECTIONS))
    yield {"stopping": asyncio.Event()}


@router.get("/livez", openapi_extra=PUBLIC)
async def livez() -> Alive:
    """This process answers."""
    return Alive(status="ok")


@router.get(
    "/readyz",
    response_model=Readiness,
    response_model_exclude_unset=True,
    openapi_extra=PUBLIC,
    responses=UNREADY,
)
async def readyz(request: Request, response: Response) -> dict[str, Any]:
    """Each store, checked now. 503 when the API cannot work or is stopping; `degraded` when work is
    only slower.
    """
    checks = await _run()
    if request.state.stopping.is_set():
        checks["server"] = {"status": "failed", "error": "the server is stopping"}
    failed = {name for name, check in checks.items() if check["status"] != "ok"}
    is_ready = failed <= OPTIONAL
    response.status_code = 200 if is_ready else 503
    status = "degraded" if is_ready else "unavailable"
    return {"status": status if failed else "ok", "checks": checks}


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=len(CHECKS), thread_name_prefix="health")


# The last run of each check. A check that hangs keeps its thread, and is not started again until it
# ends.
_asked: dict[str, Future[float | Exception]] = {}


async def _run() -> dict[str, dict[str, Any]]:
    for name, check in CHECKS.items():
        if name not in _asked or _asked[name].done():
            _asked[name] = _threads().submit(_timed, check)
    asked = dict(_asked)
    await asyncio.wait(
        [asyncio.wrap_future(check) for check in asked.values()], timeout=CHECK_SECONDS
    )
    return {name: _outcome(check) for name, check in asked.items()}


def _timed(check: Callable[[], None]) -> float | Exception:
    """Run a check: its duration in milliseconds, or its exception."""
    started = time.perf_counter()
    try:
        check()
    except Exception as error:
        return error
    return round((time.perf_counter() - started) * 1000, 1)


def _outcome(check: Future[float | Exception]) -> dict[str, Any]:
    if not check.done():
        return {"status": "failed", "error": f"no answer within {CHECK_SECONDS:g} s"}
    found = check.result()
    if not isinstance(found, Exception):
        return {"status": "ok", "ms": found}
    if isinstance(found, marks.Elsewhere):
        return {
            "status": "failed",
            "error": (
                "this process does not see the store of the database; `xalen-batch doctor` there"
                " tells why"
            ),
        }
    if isinstance(found, ConfigError | StorageFull):
        return {"status": "failed", "error": str(found)}
    # Only the class of other exceptions: messages of drivers can hold addresses and user names.
    return {"status": "failed", "error": type(found).__name__}
