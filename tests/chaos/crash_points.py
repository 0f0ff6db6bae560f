"""Crash points: a process kills itself with SIGKILL between two named steps of the product.

`run(["worker"])` is `xalen-batch worker` (or api, or beat) with these functions wrapped; the
product has no code for it. The file that CHAOS_ARMED names holds `point occurrence`. A process dies
when it reaches the point for the `occurrence`-th time since the file was written.
"""

import importlib
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Literal, NamedTuple


class Point(NamedTuple):
    """A function (`module:name`) of a role's processes, and the side of its call.

    `most`: the latest occurrence that a small batch reaches.
    """

    role: Literal["worker", "api"]
    function: str
    side: Literal["before", "after"]
    most: int


PIPELINE = "xalen_batch.pipeline"
POINTS = {
    "validate: file read": Point("worker", f"{PIPELINE}.validate:_read", "after", 2),
    "split: before its commit": Point("worker", f"{PIPELINE}.validate:_decide", "after", 2),
    "split: after its commit": Point("worker", f"{PIPELINE}.validate:run", "after", 2),
    "claim: after its commit": Point("worker", f"{PIPELINE}.claim:_read", "before", 6),
    "execute: answered, not recorded": Point(
        "worker", "xalen_batch.backends.openai:OpenAIBackend.send", "after", 30
    ),
    "record: before its commit": Point("worker", f"{PIPELINE}.record:insert", "after", 8),
    "record: after its commit": Point("worker", f"{PIPELINE}.record:record", "after", 12),
    "record: last line in, end not named": Point(
        "worker", f"{PIPELINE}.record:_enqueue_finalize", "before", 4
    ),
    "finalize: leased": Point("worker", f"{PIPELINE}.finalize:_complete", "before", 2),
    "finalize: open lines ended": Point(
        "worker", f"{PIPELINE}.finalize:_end_open_tasks", "after", 1
    ),
    "finalize: invoice made": Point("worker", "xalen_batch.billing.invoices:issue", "after", 2),
    "finalize: before its commit": Point("worker", f"{PIPELINE}.finalize:_complete", "after", 2),
    "finalize: after its commit": Point("worker", f"{PIPELINE}.finalize:run", "after", 3),
    "seal: leased": Point("worker", f"{PIPELINE}.seal:_seal", "before", 2),
    "seal: object written": Point("worker", f"{PIPELINE}.seal:_write", "after", 3),
    "seal: columns packed": Point("worker", f"{PIPELINE}.seal:_pack", "after", 2),
    "seal: before its commit": Point("worker", f"{PIPELINE}.seal:_mark", "after", 2),
    "recover: before its commit": Point("worker", f"{PIPELINE}.recover:_take_back", "after", 1),
    "live: answered, not recorded": Point(
        "api", "xalen_batch.api.live.ledger:Recorder.add", "after", 20
    ),
    "live: before its commit": Point("api", "xalen_batch.models.ledgers:add_lines", "after", 10),
    "live: after its commit": Point(
        "api", "xalen_batch.api.live.ledger:Recorder._write", "after", 10
    ),
    "upload: stored, no row": Point("api", "xalen_batch.api.receive:_store", "after", 2),
    "part: stored, no row": Point("api", "xalen_batch.uploads:add_part", "before", 3),
    "part: before its commit": Point("api", "xalen_batch.uploads:add_part", "after", 3),
    "complete: file written, no row": Point("api", "xalen_batch.uploads:_join", "after", 2),
    "complete: before its commit": Point("api", "xalen_batch.uploads:_complete", "after", 2),
    "complete: after its commit, parts not deleted": Point(
        "api", "xalen_batch.uploads:complete", "after", 2
    ),
    "upload: before its commit": Point("api", "xalen_batch.files:create", "after", 2),
    "create: before its commit": Point("api", "xalen_batch.batches.batches:create", "after", 2),
    # Reached by transactions with a message alone, so not by those that record live calls.
    "create: after its commit, not answered": Point(
        "api", "xalen_batch.broker:_publisher", "before", 4
    ),
    "retry: before its commit": Point("api", "xalen_batch.batches.retries:create", "after", 2),
    "retry: input written, not counted": Point(
        "worker", f"{PIPELINE}.retry_input:assemble", "after", 1
    ),
    "retry: input counted, before its commit": Point(
        "worker", f"{PIPELINE}.retry_input:Written.count", "after", 1
    ),
    "event: before its commit": Point("worker", "xalen_batch.events:record", "after", 3),
    "webhook: leased": Point("worker", "xalen_batch.models.deliveries:claim", "after", 3),
    "webhook: accepted, not recorded": Point(
        "worker", "xalen_batch.webhooks.sender:_record", "before", 4
    ),
    "webhook: recorded": Point("worker", "xalen_batch.webhooks.sender:_record", "after", 4),
    "cancel: before its commit": Point("api", "xalen_batch.batches.batches:cancel", "after", 1),
}


class Trigger:
    """Counts how often the armed point was reached since it was armed, and kills this process when
    it is time.
    """

    def __init__(self, armed: Path) -> None:
        self._armed = armed
        self._since: tuple[int, str] | None = None
        self._reached = 0
        self._lock = threading.Lock()

    def reached(self, point: str) -> None:
        with self._lock:
            try:
                wanted, _, occurrence = self._armed.read_text("utf-8").rpartition(" ")
                since = (self._armed.stat().st_mtime_ns, wanted)
            except FileNotFoundError:
                return
            if wanted != point:
                return
            if since != self._since:
                self._since, self._reached = since, 0
            self._reached += 1
            if self._reached >= int(occurrence):
                self._armed.rename(self._armed.with_suffix(".fired"))
                os.kill(os.getpid(), signal.SIGKILL)
                # SIGKILL may be delivered a moment later: do nothing until then.
                threading.Event().wait()


def resolve(function: str) -> tuple[Any, str]:
    """The module or class of a named function, and the function's name in it.

    Raises AttributeError or ImportError if the product no longer has the function.
    """
    module, _, path = function.partition(":")
    *above, name = path.split(".")
    holder = importlib.import_module(module)
    for step in above:
        holder = getattr(holder, step)
    if not callable(getattr(holder, name)):
        raise AttributeError(f"{function} is no function")
    return holder, name


def install(role: str, trigger: Trigger) -> None:
    """Wrap the functions of this role's points. Raises for a function that no longer exists."""
    for name, point in POINTS.items():
        if point.role == role:
            holder, attribute = resolve(point.function)
            setattr(
                holder,
                attribute,
                _wrapped(getattr(holder, attribute), name, point.side, trigger.reached),
            )


def _wrapped(
    function: Callable[..., Any], name: str, side: str, reached: Callable[[str], None]
) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            if side == "before":
                reached(name)
            returned = await function(*args, **kwargs)
            if side == "after":
                reached(name)
            return returned

        return run_async

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if side == "before":
            reached(name)
        returned = function(*args, **kwargs)
        if side == "after":
            reached(name)
        return returned

    return run


def run(arguments: list[str]) -> None:
    install(arguments[0], Trigger(Path(os.environ["CHAOS_ARMED"])))
    from xalen_batch.cli.main import app
    from xalen_batch.pipeline import sweeps

    # `leftovers` waits for a walk through the store, which otherwise begins once an hour.
    sweeps.ORPHANS.rest = 0.0

    app(arguments)


if __name__ == "__main__":
    run(sys.argv[1:])
