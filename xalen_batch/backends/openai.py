"""Any OpenAI-compatible model server: vLLM, SGLang, llama.cpp, TEI, Jina, Cohere, hosted APIs.

A server is not trusted: each request has a total timeout, each answer a cap on its decompressed
bytes, and no redirect is followed. The standard proxy variables (`HTTPS_PROXY`, `HTTP_PROXY`,
`NO_PROXY`) are honoured, except for loopback addresses.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from xalen_batch import __version__, log
from xalen_batch.backends.buffer import Buffer
from xalen_batch.backends.clients.choose import client_for, full_client_for
from xalen_batch.backends.clients.contract import (
    AnswerTooLong,
    Client,
    Limits,
    NoReply,
    NotConnected,
    Reply,
    TimedOut,
)
from xalen_batch.backends.clients.full import FullClient
from xalen_batch.backends.contract import (
    Answered,
    Events,
    Outcome,
    Refused,
    Request,
    Retryable,
    StreamBroken,
)
from xalen_batch.backends.outcomes import outcome_of
from xalen_batch.backends.rerank_api import Unusable, from_backend, to_backend
from xalen_batch.backends.streams import parsed
from xalen_batch.catalog import Model
from xalen_batch.config import settings
from xalen_batch.endpoints import embeddings
from xalen_batch.endpoints.names import EMBEDDINGS, RERANK, Endpoint
from xalen_batch.endpoints.whole import whole
from xalen_batch.errors import ConfigError

logger = log.get(__name__)

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class OpenAIBackend:
    """One model on one server, with a connection pool of its own.

    `url`: the server; the only one of the catalog's entry if not given.
    """

    def __init__(
        self, model: Model, buffer: Buffer | None = None, *, url: str | None = None
    ) -> None:
        config = model.backend
        if url is None and not config.urls:
            raise ConfigError(
                f"The catalog's models.{model.id}.backend has no base_url. Set it to the server's"
                " address, as in http://host:8000/v1."
            )
        self._model = model
        self._extra = {
            name: msgspec.Raw(msgspec.json.encode(value))
            for name, value in config.extra_body.items()
        }
        # Fields that replace or extend those of a chat. The server's name for the model is left
        # out if it is the catalog's id, which requests already carry.
        self._fixed = dict(self._extra)
        if config.model and config.model != model.id:
            self._fixed["model"] = msgspec.Raw(msgspec.json.encode(config.model))
        self._url = url or config.urls[0]
        self._buffer = buffer or Buffer()
        self._client = client_of(model, self._url, self._buffer)
        # The client of streamed answers, made with the first.
        self._streams: FullClient | None = None

    async def send(self, request: Request) -> Outcome:
        """Run one request within the settings' total timeout. Raises nothing but CancelledError."""
        try:
            return await (
                self._rerank(request) if request.endpoint == RERANK else self._post(request)
            )
        except AnswerTooLong:
            return Retryable(
                f"The backend's answer is longer than {longest_answer(request)} bytes.", 200
            )
        except NoReply as error:
            return _unanswered(error)
        except Exception as error:
            # A bug of ours or the client's must cost one line, not the task around it.
            logger.error(
                "backend.failed",
                model=self._model.id,
                request_id=request.request_id,
                **log.cause(error),
            )
            return Retryable(f"The request could not be sent: {type(error).__name__}.")

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Events | Refused | Retryable]:
        """As `send`, for an answer that is read as it arrives. Raises StreamBroken while it is."""
        if self._streams is None:
            self._streams = _stream_client_of(self._model, self._url, self._buffer)
        has_begun = False
        try:
            async with self._streams.stream(
                _path(request.endpoint), self._body(request), request.request_id
            ) as answer:
                if answer.status == 200:
                    has_begun = True
                    yield _events(answer.chunks)
                    return
                body = await _whole(answer.chunks)
                outcome = outcome_of(Reply(answer.status, body, answer.header), request)
                assert not isinstance(outcome, Answered)
                has_begun = True
                yield outcome
        except NoReply as error:
            if has_begun:
                raise
            yield _unanswered(error)

    async def close(self) -> None:
        await self._client.close()
        if self._streams is not None:
            await self._streams.close()

    def _body(self, request: Request) -> bytes:
        """The request as this server gets it."""
        if not self._fixed:
            return request.body
        return msgspec.json.encode({**_fields(request.body), **self._fixed})

    async def _post(self, request: Request) -> Outcome:
        reply = await self._client.post(
            _path(request.endpoint),
            self._body(request),
            request.request_id,
            longest_answer(request),
        )
        return outcome_of(reply, request)

    async def _rerank(self, request: Request) -> Outcome:
        config = self._model.backend
        sent = to_backend(config.rerank_api, _asked(request), config.model or self._model.id)
        if self._extra:
            sent = msgspec.json.encode({**_fields(sent), **self._extra})
        reply = await self._client.post("/rerank", sent, request.request_id)
        if not 200 <= reply.status < 300 or not reply.body:
            return outcome_of(reply, request)
        try:
            # Decode the request a second time: a request may be in flight for minutes, and its
            # decoded objects take many times its bytes.
            ranking = from_backend(msgspec.json.decode(reply.body), request, _asked(request))
        except Unusable as unusable:
            return Retryable(str(unusable), reply.status)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Retryable("The backend's answer is not valid JSON.", reply.status)
        return outcome_of(reply._replace(body=msgspec.json.encode(ranking)), request)


async def _events(chunks: AsyncIterator[bytes]) -> Events:
    try:
        async for event in parsed(chunks, settings().answer_max_bytes):
            yield event
    except NoReply as error:
        raise StreamBroken(str(error)) from error


async def _whole(chunks: AsyncIterator[bytes]) -> bytes:
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > settings().answer_max_bytes:
            raise AnswerTooLong
    return bytes(body)


def _unanswered(error: NoReply) -> Retryable:
    """The outcome of a request without an answer."""
    match error:
        case TimedOut():
            return Retryable("The backend did not answer in time.", is_timeout=True)
        case NotConnected():
            return Retryable("No connection to the backend could be made.", is_unreachable=True)
    return Retryable(f"The connection to the backend failed: {error}.")


def longest_answer(request: Request) -> int:
    """The cap on the bytes of an answer.

    Embeddings grow with their inputs: one answer may be as long as the part of a worker's bytes
    that is neither for answers nor for requests.
    """
    usual = settings().answer_max_bytes
    if request.endpoint != EMBEDDINGS:
        return usual
    asked = embeddings.inputs(request.body) * embeddings.EMBEDDING_BYTES
    return max(usual, min(asked, settings().worker_bytes // 4))


def _path(endpoint: Endpoint) -> str:
    """The path below the backend's base_url, which ends with /v1."""
    return endpoint.removeprefix("/v1")


def _asked(request: Request) -> dict[str, Any]:
    return whole(msgspec.json.decode(request.body))


def client_of(model: Model, url: str, buffer: Buffer) -> Client:
    """A client of one server of a model, with the headers and limits of its requests.

    Raises ConfigError if the catalog's entry cannot be used.
    """
    return client_for(url, *_connecting(model), buffer, **_trusting(model))


def _stream_client_of(model: Model, url: str, buffer: Buffer) -> FullClient:
    return full_client_for(url, *_connecting(model), buffer, **_trusting(model))


def _trusting(model: Model) -> dict[str, Any]:
    config = model.backend
    return {
        "connections": config.max_in_flight,
        "ca_certificates": config.ca_certificates(),
    }


def _connecting(model: Model) -> tuple[dict[str, str], Limits]:
    """The headers and the limits of a model's requests."""
    headers = {
        "content-type": "application/json",
        "accept": "application/json",
        "user-agent": f"xalen-batch/{__version__}",
    }
    headers |= model.backend.request_headers()
    limits = Limits(
        settings().request_timeout, settings().connect_timeout, settings().answer_max_bytes
    )
    return headers, limits
