"""Errors beside those of `openai`, of which they are kinds."""

from openai import OpenAIError
from openai.types import Batch

SHOWN = 5


class BatchFailed(OpenAIError):
    """Validation refused the batch: no line ran and nothing is billed."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        found = (batch.errors.data if batch.errors else None) or []
        told = [
            f"line {error.line}: {error.message}" if error.line else str(error.message)
            for error in found[:SHOWN]
        ]
        more = [f"and {len(found) - SHOWN} more in `batch.errors`"] if len(found) > SHOWN else []
        super().__init__("; ".join([f"{batch.id} failed validation", *told, *more]))


class StillRunning(OpenAIError, TimeoutError):
    """`max_wait_seconds` have passed and the batch has not ended. It goes on."""

    def __init__(self, batch_id: str, seconds: float) -> None:
        self.batch_id = batch_id
        super().__init__(f"{batch_id} has not ended after {seconds:g} s")


class DownloadError(OpenAIError):
    """The bytes of a download are not those that the server announced."""
