"""The client for TLS and proxies: pyreqwest (docs/decisions/0003).

Its parser bounds heads, trailers and chunk extensions. It skips 1xx answers and leading zeros of a chunk's size without
counting them; these take no memory, and the request's total time ends them.
"""

from collections.abc import Mapping
from datetime import timedelta

from pyreqwest.client import ClientBuilder
from pyreqwest.exceptions import ConnectError, PyreqwestError, RequestTimeoutError
from pyreqwest.response import Response

from xalen_batch.backends.clients.contract import AnswerTooLong, Limits, NoReply, NotConnected, Reply, TimedOut


class FullClient:
    """Any URL that a model server can have. The standard proxy variables are honoured unless `is_direct`."""

    def __init__(self, url: str, headers: Mapping[str, str], limits: Limits, *, is_direct: bool, connections: int) -> None:
        builder = (
            ClientBuilder()
            .default_headers(dict(headers))
            .follow_redirects(False)
            .timeout(timedelta(seconds=limits.request_timeout))
            .connect_timeout(timedelta(seconds=limits.connect_timeout))
            .pool_max_idle_per_host(connections)
        )
        self._client = (builder.no_proxy() if is_direct else builder).build()
        self._url = url
        self._longest = limits.answer_bytes

    async def post(self, path: str, body: bytes, request_id: str) -> Reply:
        request = self._client.post(self._url + path).header("x-request-id", request_id).body_bytes(body)
        try:
            async with request.build_streamed() as response:
                return Reply(response.status, await self._read(response), response.get_header)
        except RequestTimeoutError as error:
            raise TimedOut(error.message) from error
        except ConnectError as error:
            raise NotConnected(error.message) from error
        except PyreqwestError as error:
            raise NoReply(error.message.rstrip(".")) from error

    async def close(self) -> None:
        await self._client.close()

    async def _read(self, response: Response) -> bytes:
        # One buffer, because a list of parts costs many times the bytes of small ones.
        reader, body = response.body_reader, bytearray()
        while (chunk := await reader.read_chunk()) is not None:
            body += chunk.to_bytes()
            if len(body) > self._longest:
                raise AnswerTooLong
        return bytes(body)
