"""Structured logs: a constant event name, ids as fields. Never a prompt, an answer or a secret."""

import logging
import sys
import threading
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TextIO, cast
from uuid import UUID

import structlog

from xalen_batch import ids
from xalen_batch.config import settings


class Output:
    """Writes rendered events to a file, and drops those that it cannot write, as logging does."""

    def __init__(self, file: TextIO, name: str) -> None:
        self._file = file
        # For `add_logger_name`.
        self.name = name

    def msg(self, line: str) -> None:
        """Write one event. Raises nothing: a full disk must not stop the caller."""
        with suppress(OSError, ValueError):
            self._file.write(line + "\n")
            self._file.flush()

    debug = info = warning = error = critical = msg


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger; `log.info("batch.finalized", batch_id=batch.id)`.

    A UUID is written as its public id, `batch_…`.
    """
    return cast(structlog.typing.FilteringBoundLogger, structlog.get_logger(name))


def cause(error: BaseException) -> dict[str, str]:
    """The type and the place of an unexpected error, as log fields.

    Without its message, which may quote a prompt or an answer.
    """
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "error": type(error).__name__,
        "at": " < ".join(
            f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames[-4:])
        ),
    }


def _without_words(
    _: object, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Replace a library's exception by the fields of `cause`.

    Only the first line of the event is kept: the others quote the exception's message.
    """
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    elif isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        event.update(event=str(event["event"]).partition("\n")[0], **cause(error))
    return event


def _with_public_ids(
    _: object, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Render each UUID as a public id, so that users' ids can be searched for in the log."""
    event.update(
        {
            field: ids.shown(field, value)
            for field, value in event.items()
            if isinstance(value, UUID)
        }
    )
    return event


def _thread_crashed(raised: threading.ExceptHookArgs) -> None:
    if raised.exc_value is not None:
        get(__name__).error(
            "thread.crashed", thread=raised.thread and raised.thread.name, **cause(raised.exc_value)
        )


def configure() -> None:
    """Send our events and the libraries' to stderr in one format. Called by each entry point.

    Only the libraries' pass through `logging`: it doubles the CPU of an event, of which each
    request writes one.
    """
    level = logging.getLevelNamesMapping()[settings().log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_words,
        _with_public_ids,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings().log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[*shared, renderer],
        logger_factory=partial(Output, sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.root.handlers = [handler]
    # No event shows them, and finding them out costs CPU.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.root.setLevel(level)
    threading.excepthook = _thread_crashed
    # It logs each malformed byte of a form. The client gets the error in the answer.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    for noisy in ("celery.worker.strategy", "celery.app.trace", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))
