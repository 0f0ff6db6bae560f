"""The client of xalen-batch: `openai`'s, with batches in one call and what goes beyond OpenAI."""

from xalen._client import XALEN, AsyncXALEN
from xalen._errors import BatchFailed, DownloadError, StillRunning
from xalen.batch.results import AsyncBatchResults, BatchResults
from xalen.types.results import LineError, LineResult

__all__ = [
    "XALEN",
    "AsyncBatchResults",
    "AsyncXALEN",
    "BatchFailed",
    "BatchResults",
    "DownloadError",
    "LineError",
    "LineResult",
    "StillRunning",
]
