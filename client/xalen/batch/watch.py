"""The decisions of waiting for a batch, for both kinds of clients: when to ask, when to stop."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

from openai import NotFoundError, OpenAIError
from openai.types import Batch

from xalen._errors import StillRunning
from xalen.batch.outage import Outage
from xalen.batch.progress import ENDED, Progress, reporter

FIRST_PAUSE, LONGEST_PAUSE, GROWTH = 0.2, 5.0, 1.1
# Seconds without a byte of an event stream, in which the server sends a heartbeat.
STREAM_SILENCE = 25.0
# Seconds that a stream lasts at least, or the batch is polled from then on.
SHORTEST_STREAM = 5.0
# An older server, a proxy that holds the stream back, or a connection that breaks: the batch is
# polled instead. ValueError: an event that is no JSON.
NO_STREAM = (OpenAIError, ValueError)


class WaitOptions(TypedDict, total=False):
    # True: a line on stderr; None, the default: only on a terminal; or a function that gets each
    # state of the batch.
    progress: Progress
    # Seconds between two looks at the batch. By default its events are followed, and if the server
    # or a proxy has none, the batch is looked at after 0.2 to 5 seconds, growing.
    poll_interval: float
    # Seconds after which StillRunning is raised; the batch goes on. By default never.
    max_wait_seconds: float | None


def rest_of(options: WaitOptions, began: float) -> WaitOptions:
    """The options of another wait, which may last as long as is left since `began`."""
    most = options.get("max_wait_seconds")
    if most is None:
        return options
    return {**options, "max_wait_seconds": max(0.0, most - (time.monotonic() - began))}


class Watch:
    """One wait for one batch."""

    def __init__(self, batch_id: str, options: WaitOptions) -> None:
        self.batch_id = batch_id
        self._report = reporter(options.get("progress"))
        self._interval = options.get("poll_interval")
        self._most = options.get("max_wait_seconds")
        self._began = time.monotonic()
        self._pause = FIRST_PAUSE
        self._outage = Outage()
        # The events do not tell when a time to wait is over.
        self._may_stream = self._interval is None and self._most is None
        self._stream_began = 0.0
        # Since that stream began.
        self._reports = 0

    def has_ended(self, batch: Batch) -> bool:
        """Report an answer of the server; whether the batch has ended."""
        self._outage.over()
        self._reports += 1
        self._report(batch)
        return batch.status in ENDED

    def begins_stream(self) -> bool:
        """Whether to follow the events of the batch now."""
        self._stream_began, self._reports = time.monotonic(), 0
        return self._may_stream

    def stream_is_over(self) -> None:
        """A stream ended before the batch. One that told nothing is not opened again."""
        lasted = time.monotonic() - self._stream_began
        self._may_stream = self._reports > 0 and lasted >= SHORTEST_STREAM

    def pause(self) -> float:
        """Seconds until the next look. StillRunning if the time to wait is over then."""
        pause = self._pause if self._interval is None else self._interval
        self._pause = min(self._pause * GROWTH, LONGEST_PAUSE)
        return self._bounded(pause)

    def pause_after(self, error: Exception) -> float:
        """Seconds until the next attempt, after an error that may pass."""
        return self._bounded(self._outage.pause(error))

    def _bounded(self, pause: float) -> float:
        if self._most is not None and time.monotonic() - self._began + pause > self._most:
            raise StillRunning(self.batch_id, self._most)
        return pause

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Add to whatever ends the wait, Ctrl-C too, that the batch goes on."""
        try:
            yield
        except NotFoundError:
            # There is no such batch.
            raise
        except BaseException as error:
            error.add_note(
                f"The batch goes on: client.batches.wait({self.batch_id!r}) waits for it again."
            )
            raise
