"""Structured logs: a constant event name, ids as fields. Never a prompt, an answer or a secret."""

import logging
import sys
import traceback
from pathlib import Path
from typing import cast

import structlog

from xalen_batch.config import settings


def get(name: str) -> structlog.stdlib.BoundLogger:
    """A logger; `log.info("batch.finalized", batch_id=…)`."""
    return cast(structlog.stdlib.BoundLogger, structlog.get_logger(name))


def cause(error: BaseException) -> dict[str, str]:
    """What an unexpected error was and where, as fields. Never its message, which may quote a prompt or an answer."""
    frames = traceback.extract_tb(error.__traceback__)
    return {"error": type(error).__name__, "at": " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames[-4:]))}


def configure() -> None:
    """Send our events and the libraries' to stderr in one format. Called by each entry point."""
    level = logging.getLevelNamesMapping()[settings().log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings().log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        )
    )
    logging.root.handlers = [handler]
    logging.root.setLevel(level)
    for noisy in ("celery.worker.strategy", "celery.app.trace", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))
