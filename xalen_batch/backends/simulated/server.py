"""The simulated models over HTTP, for demonstrations, tests and benchmarks: `xalen-batch simulate`.

A raw asyncio protocol, so that the server is never the bottleneck of a benchmark. Answers leave in
the order of their requests, also if a client pipelines. A stream's events are spread evenly over
the latency.
"""

import asyncio
import random
import signal
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

import httptools
import msgspec
import orjson

from xalen_batch import catalog
from xalen_batch.backends.contract import Request
from xalen_batch.backends.outcomes import envelope
from xalen_batch.backends.simulated import events, faults
from xalen_batch.backends.simulated.constants import CREATED
from xalen_batch.backends.simulated.faults import Attempts
from xalen_batch.backends.simulated.model import Answer, answer
from xalen_batch.catalog import Model
from xalen_batch.config import MiB
from xalen_batch.endpoints.names import ENDPOINTS, Endpoint

LONGEST_REQUEST = 64 * MiB
DRAIN = 5.0
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class _Named(msgspec.Struct):
    model: str


_named = msgspec.json.Decoder(_Named).decode


class Simulator:
    """The state that all connections share: the models by all their names, and injected faults.

    A share `fault_rate` of the requests gets `fault` (directives of `faults.py`). `seed` seeds the
    random choice.
    """

    def __init__(
        self,
        models: Mapping[str, Model] | None = None,
        *,
        latency_ms: int | None = None,
        fault_rate: float = 0.0,
        fault: str = "status=503",
        seed: int = 0,
    ) -> None:
        self.models = dict(catalog.models() if models is None else models)
        self._by_name = {
            model.backend.model: model for model in self.models.values() if model.backend.model
        } | self.models
        self._latency_ms = latency_ms
        self._fault_rate = fault_rate
        self._fault = faults.parse(fault)
        self._random = random.Random(seed)
        self._attempts = Attempts()
        self.connections: set[Connection] = set()

    def answer(self, method: str, path: str, body: bytes, request_id: str) -> Answer:
        """Return the answer to any request, also to an invalid one."""
        path = path.partition("?")[0]
        if path in ENDPOINTS:
            if method != "POST":
                return _error(405, f"{path} takes POST.", "method_not_allowed")
            return self._run(path, body, request_id)
        if path in ("/v1/models", "/health") and method == "GET":
            return Answer(
                200,
                orjson.dumps(self._listing() if path == "/v1/models" else {"status": "ok"}),
                0.0,
            )
        return _error(404, f"There is no {path} here.", "not_found")

    def _run(self, endpoint: Endpoint, body: bytes, request_id: str) -> Answer:
        try:
            name = _named(body).model
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _error(
                400, "The request must be a JSON object with a `model`.", "invalid_request"
            )
        model = self._by_name.get(name)
        if model is None:
            return _error(404, f"The model {name!r} does not exist.", "model_not_found")
        fault = (
            self._fault
            if self._fault_rate and self._random.random() < self._fault_rate
            else faults.NONE
        )
        return answer(
            model,
            Request(endpoint, body, request_id),
            attempts=self._attempts,
            latency_ms=self._latency_ms,
            fault=fault,
        )

    def _listing(self) -> dict[str, object]:
        models = [
            {
                "id": model.id,
                "object": "model",
                "created": CREATED,
                "owned_by": model.owned_by,
                # As vLLM names it, so that `models add` needs no --context-window.
                "max_model_len": model.context_window,
            }
            for model in self.models.values()
        ]
        return {"object": "list", "data": models}


@dataclass(slots=True, eq=False)
class Pending:
    """A request's place in the order of answers, with the bytes that wait for their turn.

    `timer` adds the next bytes.
    """

    ready: bytes = b""
    is_over: bool = False
    ends_connection: bool = False
    timer: asyncio.TimerHandle | None = None


class Connection(asyncio.Protocol):
    """The connection of one client.

    `pending`: the requests without a whole answer, in their order. Only the first one's bytes are
    sent; those of the others wait.
    """

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._loop = asyncio.get_running_loop()
        self.pending: deque[Pending] = deque()
        self._is_closing = False

    @property
    def is_idle(self) -> bool:
        return not self.pending

    def close(self) -> None:
        self._is_closing = True
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)
        self._simulator.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closing = True
        for pending in self.pending:
            if pending.timer is not None:
                pending.timer.cancel()
        self._simulator.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.close()
        except httptools.HttpParserError:
            self.pending.append(pending := Pending(ends_connection=True))
            self._end(pending, _error(400, "This is not HTTP.", "bad_request"))

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        self._url = b""
        self._body: list[bytes] = []
        self._size = 0
        self._request_id = ""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"x-request-id":
            self._request_id = value.decode("latin-1")
        elif name == b"expect" and not self.pending:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size <= LONGEST_REQUEST:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._is_closing:
            return
        url, body = self._url.decode("latin-1"), b"".join(self._body)
        if self._size > LONGEST_REQUEST:
            reply = _error(413, "The request is too long.", "request_too_large")
        else:
            method = self._parser.get_method().decode()
            reply = self._simulator.answer(method, url, body, self._request_id)
        pending = Pending(ends_connection=not self._parser.should_keep_alive())
        self.pending.append(pending)
        if reply.ending == "hang":
            return
        told = events.of_answer(url.partition("?")[0], body, reply)
        if told and reply.ending != "reset":
            # The last event has the whole latency behind it.
            interval = reply.latency / len(told)
            pieces = iter(_pieces(reply, told, pending))
            self._tell(pending, pieces, interval, self._loop.time() + interval)
        elif reply.latency:
            pending.timer = self._loop.call_later(reply.latency, self._end, pending, reply)
        else:
            self._end(pending, reply)

    def _end(self, pending: Pending, reply: Answer) -> None:
        """Send a whole answer."""
        if reply.ending == "reset":
            self.abort()
            return
        headers = {
            "content-length": str(len(reply.body)),
            "content-type": "application/json",
            **reply.headers,
        }
        encoded = _head(reply.status, headers, pending) + reply.body
        if reply.ending == "truncated":
            encoded = encoded[: -(len(reply.body) // 2 + 1)]
            pending.ends_connection = True
        pending.ready, pending.is_over = encoded, True
        self._send()

    def _tell(self, pending: Pending, pieces: Iterator[bytes], interval: float, due: float) -> None:
        """Send the pieces that are due, and wait for the next one."""
        now = self._loop.time()
        while due <= now and not pending.is_over:
            piece = next(pieces, None)
            pending.ready += piece or b""
            pending.is_over = piece is None
            due += interval
        if not pending.is_over:
            pending.timer = self._loop.call_at(due, self._tell, pending, pieces, interval, due)
        self._send()

    def _send(self) -> None:
        """Send the bytes whose turn has come."""
        while self.pending and not self._transport.is_closing():
            first = self.pending[0]
            if first.ready:
                self._transport.write(first.ready)
                first.ready = b""
            if not first.is_over:
                return
            self.pending.popleft()
            if first.ends_connection:
                self.close()


def _error(status: int, message: str, code: str) -> Answer:
    return Answer(status, envelope(status, message, code=code), 0.0)


def _pieces(reply: Answer, told: Sequence[bytes], pending: Pending) -> list[bytes]:
    """The events of a stream as chunks of a body; half of them if the answer is truncated."""
    chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in told]
    if reply.ending == "truncated":
        pending.ends_connection = True
        del chunks[len(chunks) // 2 :]
    else:
        chunks[-1] += b"0\r\n\r\n"
    headers = {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"}
    chunks[0] = _head(reply.status, headers, pending) + chunks[0]
    return chunks


def _head(status: int, headers: Mapping[str, str], pending: Pending) -> bytes:
    last = "connection: close\r\n" if pending.ends_connection else ""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\n{lines}{last}\r\n".encode(
        "latin-1"
    )


async def listen(simulator: Simulator, host: str, port: int) -> asyncio.Server:
    """Start a server on the running loop; port 0 takes a free port."""
    return await asyncio.get_running_loop().create_server(
        lambda: Connection(simulator), host, port, backlog=1024
    )


async def close(server: asyncio.Server, simulator: Simulator) -> None:
    """Stop accepting, wait up to DRAIN seconds for requests in flight, then abort the others."""
    server.close()
    ends = asyncio.get_running_loop().time() + DRAIN
    while simulator.connections and asyncio.get_running_loop().time() < ends:
        for connection in [
            connection for connection in simulator.connections if connection.is_idle
        ]:
            connection.close()
        await asyncio.sleep(0.02)
    for connection in list(simulator.connections):
        connection.abort()


def serve(
    host: str,
    port: int,
    *,
    models: Mapping[str, Model] | None = None,
    latency_ms: int | None = None,
    fault_rate: float = 0.0,
    fault: str = "status=503",
    seed: int = 0,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises OSError if the port is taken, ValueError for an unknown fault.
    """
    simulator = Simulator(
        models, latency_ms=latency_ms, fault_rate=fault_rate, fault=fault, seed=seed
    )
    try:
        from uvloop import new_event_loop
    except ImportError:
        from asyncio import new_event_loop  # type: ignore[assignment]
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(simulator, host, port))


async def _serve(simulator: Simulator, host: str, port: int) -> None:
    stopped = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopped.set)
    server = await listen(simulator, host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{server.sockets[0].getsockname()[1]}/v1"
    sys.stderr.write(f"Simulated models ready at {address}: {', '.join(simulator.models)}\n")
    sys.stderr.flush()
    await stopped.wait()
    await close(server, simulator)
