"""The client for TLS and proxies: pyreqwest (docs/decisions/0003)."""

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
        reader, parts, size = response.body_reader, [], 0
        while (chunk := await reader.read_chunk()) is not None:
            parts.append(chunk.to_bytes())
            size += len(parts[-1])
            if size > self._longest:
                raise AnswerTooLong
        return b"".join(parts)
