"""The consumer of the queue on Redis: it accepts only hints as `broker.publish` and beat send them.

Anyone with access to Redis can put any message on the queue. Each message is parsed before Celery
sees it, and Celery gets a new one with a job, its id and an expiry. Options that Celery would obey
(callbacks, chains, compression, a start time, time limits) are dropped.
"""

import base64
import json
import re
import time
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import uuid4

import msgspec
from celery.worker.consumer import Consumer
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from msgspec import Meta, Struct

from xalen_batch import log
from xalen_batch.broker import QUEUE, Job, Message

logger = log.get(__name__)

# Seconds between two attempts to connect to Redis.
RECONNECT_PAUSE = 1.0
# Bytes; our own messages have about 900.
LONGEST_MESSAGE = 8 * 1024
# Seconds between two log events of dropped messages, however many there are.
LOG_PAUSE = 1.0

_UUID = re.compile("[0-9a-f]{32}")
_IDS = {Job.VALIDATE: _UUID, Job.FINALIZE: _UUID, Job.EXECUTE: re.compile("[0-9]{1,9}")}
_NEED_ID = (Job.VALIDATE, Job.FINALIZE)


class Malformed(Exception):
    """A message that this application does not send; `str()` says why, without quoting it."""


class _Headers(Struct):
    task: Job
    expires: datetime | None = None


class _Properties(Struct):
    body_encoding: Literal["base64"]


class _Envelope(Struct, rename="kebab"):
    body: str
    content_type: Literal["application/json"]
    headers: _Headers
    properties: _Properties


_Options = dict[str, Any]
_envelope = msgspec.json.Decoder(_Envelope).decode
_arguments = msgspec.json.Decoder(
    tuple[
        Annotated[list[str], Meta(max_length=1)],
        Annotated[dict[str, Any], Meta(max_length=0)],
        _Options,
    ]
).decode


def parse(raw: bytes) -> tuple[Message, datetime | None]:
    """The message in bytes from the queue, and when it expires. Raises Malformed."""
    if len(raw) > LONGEST_MESSAGE:
        raise Malformed("too long")
    try:
        envelope = _envelope(raw)
        arguments, _, _ = _arguments(base64.b64decode(envelope.body, validate=True))
    except msgspec.ValidationError as error:
        # The error's text quotes the message; only the path at its end has nothing but our names.
        path = re.findall(r" - at `[$.a-z_-]+`", str(error))[-1:]
        raise Malformed(f"unknown form{''.join(path)}") from None
    except (ValueError, RecursionError):
        raise Malformed("not JSON") from None
    job = envelope.headers.task
    id = arguments[0] if arguments else None
    pattern = _IDS.get(job)
    if id is None:
        is_right = job not in _NEED_ID
    else:
        is_right = pattern is not None and pattern.fullmatch(id) is not None
    if not is_right:
        raise Malformed("wrong arguments")
    return Message(job, id), envelope.headers.expires


def for_celery(message: Message, expires: datetime | None) -> bytes:
    """A message in the bytes that kombu and Celery (protocol 2) expect on the queue."""
    id = uuid4().hex
    body = json.dumps([message.args, {}, {}]).encode()
    headers = {
        "lang": "py",
        "task": message.job.value,
        "id": id,
        "expires": None if expires is None else expires.isoformat(),
    }
    properties = {
        "correlation_id": id,
        "delivery_tag": uuid4().hex,
        "delivery_info": {"exchange": "", "routing_key": QUEUE},
        "body_encoding": "base64",
    }
    envelope = {
        "body": base64.b64encode(body).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": properties,
    }
    return json.dumps(envelope).encode()


class _Dropped:
    """Logs dropped messages, at most once per LOG_PAUSE; Celery's consumer thread only."""

    def __init__(self) -> None:
        self._unlogged = 0
        self._quiet_until = 0.0

    def add(self, problem: Malformed) -> None:
        self._unlogged += 1
        if time.monotonic() >= self._quiet_until:
            logger.warning("message.dropped", problem=str(problem), count=self._unlogged)
            self._unlogged = 0
            self._quiet_until = time.monotonic() + LOG_PAUSE


_dropped = _Dropped()


def _received(response: list[bytes] | None, **_: Any) -> tuple[bytes, bytes] | None:
    """The answer to BRPOP (a key and a message) with the message rewritten for Celery.

    None, as for an empty queue, if the message is malformed.
    """
    if not response:
        return None
    key, raw = response
    try:
        return key, for_celery(*parse(raw))
    except Malformed as problem:
        _dropped.add(problem)
        return None


class _Channel(kombu_redis.Channel):  # type: ignore[misc]
    def _create_client(self, asynchronous: bool = False) -> Any:
        client = super()._create_client(asynchronous)
        client.set_response_callback("BRPOP", _received)
        return client


class Transport(kombu_redis.Transport):  # type: ignore[misc]
    """kombu's Redis transport, with a consumer that gets only messages of this application."""

    Channel = _Channel


def install() -> None:
    """Make Transport this process's transport for Redis; call it before the first connection."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{Transport.__name__}"


class PatientConsumer(Consumer):  # type: ignore[misc]
    """Reconnects to Redis once per RECONNECT_PAUSE; Celery would try, and log, without a pause."""

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        super().on_connection_error_after_connected(exc)
        time.sleep(RECONNECT_PAUSE)
