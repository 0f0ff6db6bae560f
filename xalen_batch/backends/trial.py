"""A trial of a model server with the client of the workers: does it answer, and how fast.

The ramp sends ever more requests at a time, within a bound of seconds and of requests.
"""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from xalen_batch.backends.buffer import Buffer
from xalen_batch.backends.clients.contract import Client, NoReply
from xalen_batch.backends.openai import client_of
from xalen_batch.catalog import Model

# A step must bring this many times the answers of the one before.
GAIN = 1.15
# Requests of each place of a step: the first ones only fill it.
ROUNDS = 3
# Requests in flight that keep the server's queue from running empty: the factor of docs/catalog.md.
SPARE = 1.5
LONGEST_ERROR = 2_000
ANSWER_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Step:
    """Answers per second and tokens per second with `in_flight` requests at a time."""

    in_flight: int
    answers: float
    tokens: float


@dataclass(slots=True)
class Trial:
    """The figures of a trial. `latency`: seconds of one request alone. `error`: the first one, as
    the server wrote it.
    """

    latency: float | None = None
    steps: list[Step] = field(default_factory=list)
    sent: int = 0
    error: str | None = None
    is_cut_short: bool = False

    @property
    def best(self) -> Step | None:
        """The step after which more requests in flight brought no more answers."""
        found: Step | None = None
        for step in self.steps:
            if found is None or step.answers >= GAIN * found.answers:
                found = step
        return found

    @property
    def max_in_flight(self) -> int | None:
        """The proposal for the catalog; twice the last step if the ramp ended before its time."""
        if self.best is None:
            return None
        still_climbs = self.is_cut_short and self.best is self.steps[-1]
        return math.ceil(self.best.in_flight * (2 if still_climbs else SPARE))


class _Refused(Exception):
    """An answer that is no success; the message is the status and the body."""


def run(
    model: Model, url: str, endpoint: str, *, most: int, seconds: float, requests: int
) -> Trial:
    """Send one request, and then a ramp up to `most` in flight; `requests` 2: no ramp.

    Raises ConfigError if the catalog's entry cannot be used.
    """
    return asyncio.run(_run(model, url, endpoint, most, seconds, requests))


async def _run(
    model: Model, url: str, endpoint: str, most: int, seconds: float, requests: int
) -> Trial:
    trial, client = Trial(), client_of(model, url, Buffer())
    sender = _Sender(model, client, endpoint, trial)
    try:
        # The first request may load the model, so the second one is measured.
        await sender.send()
        began = time.perf_counter()
        await sender.send()
        trial.latency = time.perf_counter() - began
        await _ramp(sender, most, time.perf_counter() + seconds, requests)
    except _Refused as error:
        trial.error = str(error)
    finally:
        await client.close()
    return trial


async def _ramp(sender: "_Sender", most: int, deadline: float, requests: int) -> None:
    trial, level, without_gain = sender.trial, 1, 0
    while without_gain < 2:
        count = ROUNDS * level
        time_left = deadline - time.perf_counter()
        if time_left <= 0 or trial.sent + count > requests:
            trial.is_cut_short = True
            return
        before, began = trial.best, time.perf_counter()
        try:
            async with asyncio.timeout(time_left):
                tokens = await _step(sender, level, count)
        except TimeoutError:
            trial.is_cut_short = True
            return
        elapsed = time.perf_counter() - began
        trial.steps.append(Step(level, count / elapsed, sum(tokens) / elapsed))
        without_gain = 0 if trial.best is not before else without_gain + 1
        if level >= most:
            return
        level = min(2 * level, most)


async def _step(sender: "_Sender", level: int, count: int) -> list[int]:
    left, tokens = count, []

    async def place() -> None:
        nonlocal left
        while left:
            left -= 1
            tokens.append(await sender.send())

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(level):
                group.create_task(place())
    except* _Refused as errors:
        raise errors.exceptions[0] from None
    return tokens


class _Sender:
    def __init__(self, model: Model, client: Client, endpoint: str, trial: Trial) -> None:
        self.trial = trial
        self._client = client
        self._path = endpoint.removeprefix("/v1")
        self._extra = dict(model.backend.extra_body)
        self._model = model.backend.model or model.id
        self._is_tei = endpoint == "/v1/rerank" and model.backend.rerank_api == "tei"

    async def send(self) -> int:
        """Send one request: the tokens of the answer, of the prompt if it writes none."""
        self.trial.sent += 1
        # Prompts differ from the first word on, so that no prefix cache answers for the server.
        text = f"{self.trial.sent}: write the numbers from one to twenty in words."
        body = msgspec.json.encode({**self._body(text), **self._extra})
        try:
            reply = await self._client.post(self._path, body, f"trial-{self.trial.sent}")
        except NoReply as error:
            raise _Refused(f"{type(error).__name__}: {error}") from error
        if reply.status != 200:
            text = reply.body[:LONGEST_ERROR].decode("utf-8", "replace").strip()
            raise _Refused(f"{reply.status} {text}".rstrip())
        return _tokens(reply.body)

    def _body(self, text: str) -> Mapping[str, Any]:
        if self._is_tei:
            return {"query": "numbers", "texts": [text, "Apples."]}
        bodies: Mapping[str, Mapping[str, Any]] = {
            "/chat/completions": {
                "messages": [{"role": "user", "content": text}],
                "max_tokens": ANSWER_TOKENS,
            },
            "/completions": {"prompt": text, "max_tokens": ANSWER_TOKENS},
            "/responses": {"input": text, "max_output_tokens": ANSWER_TOKENS, "store": False},
            "/embeddings": {"input": text},
            "/rerank": {"query": "numbers", "documents": [text, "Apples."]},
        }
        return {"model": self._model, **bodies[self._path]}


def _tokens(body: bytes) -> int:
    try:
        usage = msgspec.json.decode(body).get("usage") or {}
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError):
        return 0
    names: Sequence[str] = ("completion_tokens", "output_tokens", "prompt_tokens", "total_tokens")
    found = (usage.get(name) for name in names)
    return next((count for count in found if isinstance(count, int) and count > 0), 0)
