"""The server: one event loop, answers ready before they are asked for, and a count of all it did.

A request at 0 ms is parsed and answered in one callback. Everything else (latency, a limit, a
prefix cache) goes through `Service`, which knows how many requests are inside at any moment.
"""

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools
import msgspec

from benchmarks.mock import answers
from benchmarks.mock.options import Options, changed
from benchmarks.mock.prefixes import PrefixCache

SAMPLE_INTERVAL = 0.02
MOST_SAMPLES = 60_000
DRAWS = 65_536


class _Documents(msgspec.Struct):
    documents: list[msgspec.Raw]


_documents = msgspec.json.Decoder(_Documents).decode


class _Asked(msgspec.Struct):
    input: str | list[msgspec.Raw]


_asked = msgspec.json.Decoder(_Asked).decode


class Stats(msgspec.Struct):
    """Since the last reset. `busy_seconds` is the integral of requests inside over time."""

    requests: int = 0
    answered: int = 0
    refused: int = 0
    abandoned: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    busy_seconds: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    first_request: float | None = None
    last_answer: float | None = None
    cpu_seconds: float = 0.0
    seconds: float = 0.0
    # [seconds, in flight, answered, busy seconds, refused], every 20 ms
    timeline: list[tuple[float, int, int, float, int]] = []


class Service:
    """What happens to a request between its arrival and its answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: Options) -> None:
        self._loop = loop
        self.apply(options)
        self.reset()
        self._sample()

    def apply(self, options: Options) -> None:
        self.options = options
        self.is_immediate = options.is_immediate
        self.chat_answer = answers.chat(options.answer_bytes)
        self._written = answers.completion_tokens(options.answer_bytes)
        self._cache = (
            PrefixCache(options.prefix_blocks) if options.prefix_blocks is not None else None
        )
        self.reads_chats = self._cache is not None
        self._draws = _lognormal(options) if options.sigma else None
        self._allowed, self._filled = 0.0, time.perf_counter()
        self._serving = getattr(self, "_serving", 0)
        self._waiting: deque[tuple[Connection, bytes, float, int]] = getattr(
            self, "_waiting", deque()
        )
        self._serve_waiting()

    def reset(self) -> None:
        inside = self._serving + len(self._waiting)
        self.stats = Stats(in_flight=inside, max_in_flight=inside)
        self._started = self._moved = time.perf_counter()
        self._cpu = time.process_time()
        self._drawn = 0
        if self._cache is not None:
            self._cache = PrefixCache(self.options.prefix_blocks or 0)

    def snapshot(self) -> Stats:
        self._count(0)
        self.stats.cpu_seconds = time.process_time() - self._cpu
        self.stats.seconds = time.perf_counter() - self._started
        return self.stats

    def chat_at_once(self) -> bytes:
        """The whole life of a chat request where nothing delays it."""
        stats = self.stats
        stats.requests += 1
        stats.answered += 1
        stats.input_tokens += answers.PROMPT_TOKENS
        stats.output_tokens += self._written
        return self.chat_answer

    def chat(self, connection: "Connection", body: bytes) -> None:
        if self._cache is None:
            self._admit(connection, self.chat_answer, 0.0, answers.PROMPT_TOKENS)
            return
        try:
            read = self._cache.read(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            connection.send(answers.error(400, "no chat request"))
            return
        self.stats.cached_tokens += read.cached
        answer = answers.chat(self.options.answer_bytes, read.prompt, read.cached)
        self._admit(
            connection,
            answer,
            (read.prompt - read.cached) * self.options.token_latency,
            read.prompt,
        )

    def rerank(self, connection: "Connection", body: bytes) -> None:
        try:
            documents = len(_documents(body).documents)
        except (msgspec.DecodeError, UnicodeDecodeError):
            connection.send(answers.error(400, "no rerank request"))
            return
        self._admit(
            connection,
            answers.rerank(documents),
            0.0,
            documents * answers.TOKENS_PER_DOCUMENT,
            written=0,
        )

    def embeddings(self, connection: "Connection", body: bytes) -> None:
        try:
            given = _asked(body).input
        except (msgspec.DecodeError, UnicodeDecodeError):
            connection.send(answers.error(400, "no request for embeddings"))
            return
        inputs = len(given) if isinstance(given, list) else 1
        read = inputs * answers.TOKENS_PER_INPUT
        extra = read * self.options.token_latency
        self._admit(connection, answers.embeddings(inputs), extra, read, written=0)

    def _admit(
        self,
        connection: "Connection",
        answer: bytes,
        extra: float,
        read: int,
        written: int | None = None,
    ) -> None:
        stats, options = self.stats, self.options
        stats.requests += 1
        if options.requests_per_minute is not None and not self._is_allowed(
            options.requests_per_minute / 60
        ):
            stats.refused += 1
            connection.send(answers.too_many(options.retry_after))
            return
        if (
            options.slots is not None
            and self._serving >= options.slots
            and len(self._waiting) >= options.queue
        ):
            stats.refused += 1
            connection.send(answers.too_many(options.retry_after))
            return
        stats.input_tokens += read
        stats.output_tokens += self._written if written is None else written
        self._count(1)
        if stats.first_request is None:
            stats.first_request = self._moved - self._started
        if options.slots is not None and self._serving >= options.slots:
            self._waiting.append((connection, answer, extra, read))
        else:
            self._serve(connection, answer, extra)

    def _is_allowed(self, rate: float) -> bool:
        """A bucket that holds a second's worth."""
        now = time.perf_counter()
        self._allowed = min(rate, self._allowed + (now - self._filled) * rate)
        self._filled = now
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True

    def _serve(self, connection: "Connection", answer: bytes, extra: float) -> None:
        self._serving += 1
        latency = self._latency() + extra
        if latency:
            self._loop.call_later(latency, self._done, connection, answer)
        else:
            self._done(connection, answer)

    def _latency(self) -> float:
        options = self.options
        latency = options.latency
        if self._draws is not None:
            latency = self._draws[self._drawn % DRAWS]
            self._drawn += 1
        return latency * (1 + self._serving / options.doubles_at) if options.doubles_at else latency

    def _done(self, connection: "Connection", answer: bytes) -> None:
        self._serving -= 1
        self._count(-1)
        if connection.send(answer):
            self.stats.answered += 1
            self.stats.last_answer = self._moved - self._started
        else:
            self.stats.abandoned += 1
        if self._waiting:
            self._serve_waiting()

    def _serve_waiting(self) -> None:
        slots = self.options.slots
        while self._waiting and (slots is None or self._serving < slots):
            connection, answer, extra, _ = self._waiting.popleft()
            self._serve(connection, answer, extra)

    def _count(self, change: int) -> None:
        now, stats = time.perf_counter(), self.stats
        stats.busy_seconds += stats.in_flight * (now - self._moved)
        self._moved = now
        stats.in_flight += change
        stats.max_in_flight = max(stats.max_in_flight, stats.in_flight)

    def _sample(self) -> None:
        self._count(0)
        stats = self.stats
        if stats.requests and len(stats.timeline) < MOST_SAMPLES:
            stats.timeline.append(
                (
                    self._moved - self._started,
                    stats.in_flight,
                    stats.answered,
                    stats.busy_seconds,
                    stats.refused,
                )
            )
        self._loop.call_later(SAMPLE_INTERVAL, self._sample)


class Connection(asyncio.Protocol):
    """One client. httptools calls the on_… methods."""

    __slots__ = ("_body", "_keeps_body", "_parser", "_path", "_service", "_transport")

    _transport: asyncio.Transport

    def __init__(self, service: Service) -> None:
        self._service = service
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._keeps_body = False
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        self._path = url
        self._keeps_body = self._service.reads_chats or not url.endswith(b"/chat/completions")

    def on_body(self, part: bytes) -> None:
        if self._keeps_body:
            self._body.append(part)

    def on_message_complete(self) -> None:
        service = self._service
        if self._path.endswith(b"/chat/completions"):
            if service.is_immediate:
                self._transport.write(service.chat_at_once())
            else:
                service.chat(self, self._taken())
        elif self._path.endswith(b"/rerank"):
            service.rerank(self, self._taken())
        elif self._path.endswith(b"/embeddings"):
            service.embeddings(self, self._taken())
        else:
            self.send(_operate(service, self._path, self._taken()))

    def send(self, answer: bytes) -> bool:
        """Whether there is still someone to send it to."""
        if self._transport.is_closing():
            return False
        self._transport.write(answer)
        return True

    def _taken(self) -> bytes:
        body, self._body = b"".join(self._body), []
        return body


def _operate(service: Service, path: bytes, body: bytes) -> bytes:
    """`GET /stats`, and `POST /control` with options to change and `{"reset": true}`; both answer
    with the stats.
    """
    if path == b"/control":
        try:
            changes = msgspec.json.decode(body or b"{}", type=dict[str, msgspec.Raw])
            wants_reset = bytes(changes.pop("reset", b"false")) == b"true"
            service.apply(
                changed(
                    service.options,
                    {name: msgspec.json.decode(value) for name, value in changes.items()},
                )
            )
        except msgspec.ValidationError as error:
            return answers.error(400, str(error))
        if wants_reset:
            service.reset()
    elif path != b"/stats":
        return answers.error(
            404,
            "there is /v1/chat/completions, /v1/embeddings, /v1/rerank, /stats and /control",
        )
    return answers.http(msgspec.json.encode(service.snapshot()))


def _lognormal(options: Options) -> list[float]:
    draw = random.Random(options.seed)
    return [options.latency * math.exp(options.sigma * draw.gauss(0, 1)) for _ in range(DRAWS)]


async def serve(port: int, options: Options, on_ready: Callable[[int], None]) -> None:
    """Answer on this port of the loopback (0: a free one) until cancelled."""
    loop = asyncio.get_running_loop()
    service = Service(loop, options)
    server = await loop.create_server(lambda: Connection(service), "127.0.0.1", port, backlog=4096)
    on_ready(server.sockets[0].getsockname()[1])
    await server.serve_forever()
