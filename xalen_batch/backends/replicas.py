"""Several servers of one model: which server gets a request, and what a server's failure costs.

Lines with the same beginning of the prompt go to the same server, whose prefix cache holds it, as
long as that server has no more than its share of the load. A server that fails is away for a pause;
then one request tries it (docs/decisions/0053).
"""

import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import blake2b

import msgspec

from xalen_batch import log
from xalen_batch.backends.contract import Backend, Events, Outcome, Refused, Request, Retryable
from xalen_batch.endpoints.names import EMBEDDINGS, RERANK

logger = log.get(__name__)

# A server takes at most this many times the mean of requests in flight: "consistent hashing with
# bounded loads".
LOAD = 1.25
# Bytes of the prompt's JSON that decide on the server. Prompts that are shorter share no cache.
KEY_BYTES = 256
# Fields of a body that the model reads, in the order in which it reads them.
PROMPT_FIELDS = ("tools", "instructions", "messages", "input", "prompt")
# Failed requests in a row after which a server is away. One without a connection is away at once.
FAILURES = 3
# Seconds for which a server is away, at first and at most; each failed trial doubles them.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Replica:
    """One server, and what this process knows of it."""

    def __init__(self, number: int, name: str, backend: Backend) -> None:
        self.number = number
        self.name = name
        self.backend = backend
        self.seed = blake2b(name.encode(), digest_size=16).digest()
        self.in_flight = 0
        # Requests that it was sent, for an equal choice among equals.
        self.sent = 0
        # Failures since its last answer, and the time of that answer.
        self.failures = 0
        self.answered_at = -math.inf
        # Away: since when, the time of its next trial, and its last pause; None: it is not away.
        self.away_since: float | None = None
        self.trial_at = 0.0
        self.pause = 0.0
        self.is_tried = False

    def weight(self, key: bytes) -> bytes:
        """The highest weight of a key wins (rendezvous hashing); equal in every process."""
        return blake2b(key, key=self.seed, digest_size=8).digest()


class Replicas:
    """A backend of several servers, by name; event loop thread only.

    A request that meets a server without a connection is sent to another one at once, until one
    answers or all have failed. Then the outcome is that of the last one, as of a single server.
    """

    def __init__(
        self,
        model: str,
        servers: Mapping[str, Backend],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._clock = clock
        self._replicas = [
            _Replica(number, name, backend)
            for number, (name, backend) in enumerate(servers.items(), start=1)
        ]

    async def send(self, request: Request) -> Outcome:
        """Run one request. Raises nothing but CancelledError."""
        key, untried, has_moved = _key(request), list(self._replicas), False
        while True:
            replica, is_trial = self._choose(key, untried)
            outcome, may_move = await self._send(replica, request, is_trial=is_trial)
            untried.remove(replica)
            if not isinstance(outcome, Retryable) or not untried or not may_move:
                return outcome
            if _may_have_run(outcome):
                # The line itself may have broken the server. It breaks two in one attempt at most.
                if has_moved:
                    return outcome
                has_moved = True

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Events | Refused | Retryable]:
        """As `send`, for an answer that is read as it arrives. Raises StreamBroken while it is.

        A server without a connection is passed over; an answer that has begun is not moved.
        """
        key, untried = _key(request), list(self._replicas)
        while True:
            replica, is_trial = self._choose(key, untried)
            untried.remove(replica)
            sent_at = self._clock()
            replica.in_flight += 1
            replica.sent += 1
            try:
                async with replica.backend.open(request) as stream:
                    if isinstance(stream, Retryable):
                        self._failed(replica, stream, sent_at, is_trial=is_trial)
                        may_move = stream.is_unreachable and bool(untried)
                    else:
                        self._answered(replica)
                        may_move = False
                    if not may_move:
                        yield stream
                        return
            finally:
                replica.in_flight -= 1

    async def close(self) -> None:
        for replica in self._replicas:
            await replica.backend.close()

    def _choose(self, key: bytes | None, untried: list[_Replica]) -> tuple[_Replica, bool]:
        """The server of a request, and whether the request tries a server that is away."""
        now = self._clock()
        here = [replica for replica in untried if replica.away_since is None]
        if len(here) < len(untried):
            for replica in untried:
                is_due = replica.away_since is not None and now >= replica.trial_at
                if is_due and not replica.is_tried:
                    return replica, True
        # With every server away, requests go out as to a single server that fails.
        choice = here or untried
        if key is None:
            return min(choice, key=lambda replica: (replica.in_flight, replica.sent)), False
        total = sum(replica.in_flight for replica in choice)
        most = math.ceil(LOAD * (total + 1) / len(choice))
        free = [replica for replica in choice if replica.in_flight < most]
        return max(free, key=lambda replica: replica.weight(key)), False

    async def _send(
        self, replica: _Replica, request: Request, *, is_trial: bool
    ) -> tuple[Outcome, bool]:
        """The outcome, and whether another server may get the request at once."""
        sent_at = self._clock()
        replica.in_flight += 1
        replica.sent += 1
        replica.is_tried |= is_trial
        outcome = None
        try:
            outcome = await replica.backend.send(request)
        finally:
            replica.in_flight -= 1
            if is_trial:
                replica.is_tried = False
                if outcome is None:
                    # The request was cancelled.
                    replica.trial_at = self._clock() + replica.pause
        if not isinstance(outcome, Retryable):
            self._answered(replica)
            return outcome, False
        may_move = self._failed(replica, outcome, sent_at, is_trial=is_trial)
        return replace(outcome, server=replica.number), may_move

    def _answered(self, replica: _Replica) -> None:
        now = self._clock()
        replica.failures, replica.answered_at = 0, now
        if replica.away_since is not None:
            logger.warning(
                "replica.here",
                model=self._model,
                server=replica.name,
                away_for=round(now - replica.away_since, 1),
            )
            replica.away_since = None

    def _failed(
        self, replica: _Replica, outcome: Retryable, sent_at: float, *, is_trial: bool
    ) -> bool:
        """Whether another server may get the request at once."""
        if outcome.is_overload:
            # Overload of a server that has nothing else in flight means that it is not ready.
            is_failure = is_trial or not replica.in_flight
            if is_failure:
                self._away(replica, outcome, is_trial=is_trial)
            return is_failure
        if outcome.is_timeout:
            if replica.answered_at < sent_at:
                self._away(replica, outcome, is_trial=is_trial)
            return False
        replica.failures += 1
        is_broken = outcome.is_unreachable or outcome.status is None
        if outcome.is_unreachable or is_trial or replica.failures >= FAILURES:
            self._away(replica, outcome, is_trial=is_trial)
        return is_broken or is_trial

    def _away(self, replica: _Replica, outcome: Retryable, *, is_trial: bool) -> None:
        now = self._clock()
        if replica.away_since is None:
            replica.away_since, replica.pause = now, FIRST_PAUSE
            logger.warning(
                "replica.away",
                model=self._model,
                server=replica.name,
                status=outcome.status,
                reason=outcome.reason,
            )
        elif is_trial:
            replica.pause = min(2 * replica.pause, LONGEST_PAUSE)
        else:
            return
        replica.trial_at = now + replica.pause


def _may_have_run(outcome: Retryable) -> bool:
    return not (outcome.is_unreachable or outcome.is_overload)


def _key(request: Request) -> bytes | None:
    """The beginning of the prompt's JSON; None for a prompt without a prefix to share."""
    if request.endpoint in (EMBEDDINGS, RERANK):
        return None
    fields, text = _fields(request.body), b""
    for name in PROMPT_FIELDS:
        if name in fields and len(text) < KEY_BYTES:
            text += bytes(fields[name])
    return text[:KEY_BYTES] if len(text) >= KEY_BYTES else None
