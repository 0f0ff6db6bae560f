"""The HTTP client of webhooks: it connects to the addresses that were checked, and to no other.

pyreqwest gets the address of the name, so TLS and the Host header have the name, and nothing is
resolved again. It follows no redirect, honours no proxy of the environment, and inflates nothing.
"""

import time
from collections import OrderedDict
from datetime import timedelta
from threading import Lock
from typing import NamedTuple

from pyreqwest.client import SyncClient, SyncClientBuilder
from pyreqwest.exceptions import (
    BuilderError,
    ConnectTimeoutError,
    PyreqwestError,
    RequestTimeoutError,
)
from pyreqwest.response import SyncResponse

from xalen_batch import __version__
from xalen_batch.config import settings
from xalen_batch.errors import ConfigError
from xalen_batch.webhooks import addresses
from xalen_batch.webhooks.addresses import Refused, Target

# Seconds for an attempt with everything, and for its connection.
TOTAL, CONNECT = 15.0, 5.0
# Bytes of an answer's body that are read, and that are kept.
READ_BYTES, KEPT_BYTES = 64 * 1024, 2 * 1024
# Clients with an open connection. Making one costs 4 ms of CPU.
KEPT_CLIENTS = 16


class Answer(NamedTuple):
    """What a receiver answered: the status, the beginning of the body, `Retry-After`."""

    status: int
    body: bytes
    retry_after: str | None


class NoAnswer(Exception):
    """An attempt without an answer; `str()` is a sentence for the webhook's owner."""


class Receivers:
    """Posts to receivers; any thread. It keeps some connections open."""

    def __init__(self) -> None:
        self._clients: OrderedDict[tuple[str, int, str], SyncClient] = OrderedDict()
        self._lock = Lock()

    def post(self, url: str, headers: dict[str, str], body: bytes, *, attempt: int = 0) -> Answer:
        """Post a body, and return the answer with any status. Raises NoAnswer.

        The URL and the addresses of its name are checked anew. Attempts take turns among them.
        """
        ends = time.monotonic() + TOTAL
        try:
            target = addresses.stored(url)
            found = addresses.resolve(target)
        except Refused as refusal:
            raise NoAnswer(f"Not sent: {refusal}.") from None
        client = self._client(target, found[attempt % len(found)])
        left = timedelta(seconds=max(ends - time.monotonic(), 1.0))
        request = (
            client.post(target.url)
            .headers(headers | {"content-type": "application/json"})
            .timeout(left)
            .body_bytes(body)
            # Of its own accord it reads 64 KiB before it returns any.
            .streamed_read_buffer_limit(0)
        )
        try:
            with request.build_streamed() as response:
                return Answer(
                    response.status, _beginning(response), response.get_header("retry-after")
                )
        except RequestTimeoutError as error:
            # pyreqwest says ConnectTimeoutError also where a connected server sends no byte.
            if isinstance(error, ConnectTimeoutError) and time.monotonic() < ends:
                raise NoAnswer(f"No connection within {CONNECT:.0f} seconds.") from None
            raise NoAnswer(f"No whole answer within {TOTAL:.0f} seconds.") from None
        except PyreqwestError as error:
            raise NoAnswer(f"No answer: {_cause(error)}.") from None

    def _client(self, target: Target, address: str) -> SyncClient:
        key = (target.host, target.port, address)
        with self._lock:
            client = self._clients.pop(key, None) or _made(target, address)
            self._clients[key] = client
            if len(self._clients) > KEPT_CLIENTS:
                self._clients.popitem(last=False)
        return client


def _made(target: Target, address: str) -> SyncClient:
    builder = (
        SyncClientBuilder()
        .user_agent(f"xalen-batch/{__version__}")
        .follow_redirects(False)
        .no_proxy()
        .http1_only()
        .gzip(False)
        .brotli(False)
        .zstd(False)
        .deflate(False)
        .connect_timeout(timedelta(seconds=CONNECT))
        .pool_idle_timeout(timedelta(seconds=30))
        .pool_max_idle_per_host(1)
    )
    if target.literal is None:
        builder = builder.resolve(target.host, address, target.port)
    ca_file = settings().webhook_ca_file
    try:
        if ca_file is not None:
            builder = builder.add_root_certificate_pem(ca_file.read_bytes())
        return builder.build()
    except (OSError, BuilderError):
        raise ConfigError(
            "XALEN_WEBHOOK_CA_FILE cannot be read, or has no certificate in PEM."
        ) from None


def _beginning(response: SyncResponse) -> bytes:
    """The first KEPT_BYTES of a body, of which at most READ_BYTES are read.

    The status is the answer: a body that breaks off or does not end in time changes nothing.
    """
    kept, read = bytearray(), 0
    try:
        while read < READ_BYTES:
            chunk = response.body_reader.read_chunk()
            if chunk is None:
                break
            read += len(chunk)
            kept += bytes(chunk)[: KEPT_BYTES - len(kept)]
    except PyreqwestError:
        pass
    return bytes(kept)


def _cause(error: PyreqwestError) -> str:
    """The innermost cause of a library's error, which names no URL."""
    causes = getattr(error, "details", {}).get("causes") or []
    text = causes[-1]["message"] if causes else error.message
    return str(text).rstrip(".")[:200]
