"""Whether this process lives, and whether it can work."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import Any

import obstore
from fastapi import APIRouter, Response

from xalen_batch import broker, db, disk, schema, storage
from xalen_batch.errors import ConfigError, StorageFull

router = APIRouter(tags=["health"])

CHECK_SECONDS = 1.0


def _database() -> None:
    db.ping()


def _migrations() -> None:
    if not schema.is_current():
        raise ConfigError("the database does not have this version's schema; run `xalen-batch migrate`")


def _redis() -> None:
    broker.ping(CHECK_SECONDS)


def _storage() -> None:
    obstore.put(storage.store(), "health/readyz", b"ok")


def _disk() -> None:
    if shortages := disk.short():
        raise StorageFull(" ".join(space.message for space in shortages.values()))


CHECKS: dict[str, Callable[[], None]] = {
    "database": _database,
    "migrations": _migrations,
    "redis": _redis,
    "storage": _storage,
    "disk": _disk,
}
# Redis carries hints only: without it work goes on, later. While a disk is short, what is there can be read and what runs is recorded.
OPTIONAL = frozenset({"redis", "disk"})


@router.get("/livez")
def livez() -> dict[str, str]:
    """This process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(response: Response) -> dict[str, Any]:
    """Each store, checked now. 503 when the API cannot work; `degraded` when work is only slower."""
    checks = _run()
    failed = {name for name, check in checks.items() if check["status"] != "ok"}
    is_ready = failed <= OPTIONAL
    response.status_code = 200 if is_ready else 503
    return {"status": "ok" if not failed else "degraded" if is_ready else "unavailable", "checks": checks}


@cache
def _threads() -> ThreadPoolExecutor:
    # A check that hangs keeps its thread; later ones then time out in the queue, and nothing piles up.
    return ThreadPoolExecutor(max_workers=2 * len(CHECKS), thread_name_prefix="health")


def _run() -> dict[str, dict[str, Any]]:
    running = {name: _threads().submit(_timed, check) for name, check in CHECKS.items()}
    wait(running.values(), timeout=CHECK_SECONDS)
    return {name: _outcome(check) for name, check in running.items()}


def _timed(check: Callable[[], None]) -> float:
    started = time.perf_counter()
    check()
    return round((time.perf_counter() - started) * 1000, 1)


def _outcome(check: Future[float]) -> dict[str, Any]:
    if not check.done():
        check.cancel()
        return {"status": "failed", "error": f"no answer within {CHECK_SECONDS:g} s"}
    error = check.exception()
    if error is None:
        return {"status": "ok", "ms": check.result()}
    # The kind only: messages of drivers can hold addresses and user names.
    return {"status": "failed", "error": str(error) if isinstance(error, ConfigError | StorageFull) else type(error).__name__}
