"""The states of a batch until its end: from its event stream, or by polling where that fails."""

import math
import time
from collections.abc import Iterator
from typing import Any

from xalen_batch.cli.batch_view import ENDED
from xalen_batch.cli.client import ApiClient
from xalen_batch.cli.failures import TIMED_OUT, ApiError, Failed, Unreachable

Json = dict[str, Any]

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 2.0
# Seconds without a byte of a stream, in which the server sends a heartbeat: a proxy holds it back,
# or the connection is broken.
SILENCE = 25.0
# Seconds that a stream lasts at least, or it is not opened again.
SHORTEST = 5.0
# Seconds between two looks at the whole batch while its events are followed: they lack its outlook.
LOOK_EVERY = 10.0


class States:
    """Iterates over the states of a batch. Used by one thread.

    Raises Failed (TIMED_OUT) after `timeout` seconds, and the errors of the client.
    """

    def __init__(self, client: ApiClient, batch_id: str, timeout: float | None) -> None:
        self._client = client
        self._batch_id = batch_id
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def __iter__(self) -> Iterator[Json]:
        batch = self._look()
        yield batch
        if batch["status"] in ENDED:
            return
        for batch in self._streamed():
            yield batch
            if batch["status"] in ENDED:
                return
        pause = FIRST_PAUSE
        while batch["status"] not in ENDED:
            self._check_time(pause)
            time.sleep(pause)
            pause = min(pause * 1.1, LONGEST_PAUSE)
            batch = self._look()
            yield batch

    def _streamed(self) -> Iterator[Json]:
        """The states that event streams tell, until one tells none or breaks."""
        looked = time.monotonic()
        is_told, begun = True, -math.inf
        # A server that closes each stream at once is polled.
        while is_told and time.monotonic() - begun > SHORTEST:
            is_told, begun = False, time.monotonic()
            self._check_time(FIRST_PAUSE)
            left = SILENCE if self._deadline is None else self._deadline - time.monotonic()
            try:
                for batch in self._client.events(
                    f"/batches/{self._batch_id}/events", silence=min(SILENCE, left)
                ):
                    self._check_time(0.0)
                    if batch is not None:
                        is_told = True
                        yield batch
                    elif time.monotonic() - looked >= LOOK_EVERY:
                        looked = time.monotonic()
                        yield self._look()
            except (ApiError, Unreachable):
                return

    def _look(self) -> Json:
        return self._client.get(f"/batches/{self._batch_id}")

    def _check_time(self, pause: float) -> None:
        """Raise Failed if the time to wait is over in `pause` seconds."""
        if self._deadline is not None and time.monotonic() + pause > self._deadline:
            raise Failed(
                f"Waited {self._timeout:g} s. The batch goes on; `xalen-batch watch"
                f" {self._batch_id}` waits again.",
                TIMED_OUT,
            )
