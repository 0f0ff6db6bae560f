"""No log holds an exception's message: it may quote a prompt, an answer or a key."""

import asyncio
import io
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from uuid import UUID

import pytest
import structlog
from pydantic import BaseModel, ValidationError

from xalen_batch import log

CANARY = "canary-4711"


class Asked(BaseModel):
    number: int


@pytest.fixture
def said(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], list[dict[str, str]]]]:
    """All logged events, also those of libraries."""
    handlers, level, hook = logging.root.handlers, logging.root.level, threading.excepthook
    configure(log_format="json", log_level="debug")
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    log.configure()
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    logging.root.handlers, threading.excepthook = handlers, hook
    logging.root.setLevel(level)
    structlog.reset_defaults()


def crash() -> None:
    try:
        Asked.model_validate({"number": CANARY})
    except ValidationError as error:
        raise RuntimeError(f"could not use {CANARY}") from error


def test_a_library_that_logs_an_exception_logs_its_kind_and_place(
    said: Callable[[], list[dict[str, str]]],
) -> None:
    try:
        crash()
    except RuntimeError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")
        logging.getLogger("celery").critical("Unrecoverable error\nof %s", CANARY, exc_info=True)
    found = said()
    assert [line["event"] for line in found] == [
        "Exception in ASGI application",
        "Unrecoverable error",
    ]
    assert {line["error"] for line in found} == {"RuntimeError"}
    assert all("test_log.py" in line["at"] for line in found)
    assert CANARY not in str(found)


def test_an_exception_of_ours_is_logged_alike(said: Callable[[], list[dict[str, str]]]) -> None:
    try:
        crash()
    except RuntimeError:
        log.get("x").exception("batch.crashed", batch_id="1")
    (found,) = said()
    assert (found["event"], found["batch_id"], found["error"]) == (
        "batch.crashed",
        "1",
        "RuntimeError",
    )
    assert CANARY not in str(found)


def test_a_thread_that_crashes_says_no_more(said: Callable[[], list[dict[str, str]]]) -> None:
    thread = threading.Thread(target=crash, name="poll")
    thread.start()
    thread.join()
    (found,) = said()
    assert (found["event"], found["thread"], found["error"]) == (
        "thread.crashed",
        "poll",
        "RuntimeError",
    )
    assert CANARY not in str(found)


def test_a_task_of_an_event_loop_that_nobody_asks_says_no_more(
    said: Callable[[], list[dict[str, str]]],
) -> None:
    async def run() -> None:
        async def crashing() -> None:
            crash()

        task = asyncio.create_task(crashing())
        await asyncio.wait([task])
        del task

    asyncio.run(run())
    found = [line for line in said() if line["event"] == "Task exception was never retrieved"]
    assert [line["error"] for line in found] == ["RuntimeError"]
    assert CANARY not in str(found)


def test_ids_are_written_as_users_have_them(said: Callable[[], list[dict[str, str]]]) -> None:
    one = UUID(int=1)
    kinds = (
        "batch_id",
        "input_file_id",
        "schedule_id",
        "run_id",
        "account_id",
        "key_id",
        "invoice_id",
        "other",
    )
    log.get("x").info("thing.done", **dict.fromkeys(kinds, one))
    (found,) = said()
    assert [found[kind] for kind in kinds] == [
        *(
            f"{prefix}{one.hex}"
            for prefix in ("batch_", "file-", "sched_", "run_", "acct_", "key_", "inv_")
        ),
        str(one),
    ]
