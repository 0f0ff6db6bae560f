"""`client.invoices.lines` streams the CSV of a batch's lines."""

import asyncio

import httpx2
import openai
import pytest

from xalen import XALEN, AsyncXALEN

CSV = b"line,custom_id\r\n1,a\r\n"


def answering(request: httpx2.Request) -> httpx2.Response:
    assert str(request.url) == "http://stub/v1/batches/batch_1/invoice/lines.csv"
    assert (request.headers["accept"], request.headers["x-own"]) == ("text/csv", "own")
    return httpx2.Response(200, content=CSV, headers={"content-type": "text/csv"})


def test_lines_are_streamed() -> None:
    http = httpx2.Client(transport=httpx2.MockTransport(answering))
    client = XALEN(api_key="xln_test_a", base_url="http://stub", http_client=http)
    assert b"".join(client.invoices.lines("batch_1", extra_headers={"x-own": "own"})) == CSV


def test_lines_are_streamed_asynchronously() -> None:
    async def main() -> bytes:
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(answering))
        client = AsyncXALEN(api_key="xln_test_a", base_url="http://stub", http_client=http)
        chunks = client.invoices.lines("batch_1", extra_headers={"x-own": "own"})
        return b"".join([chunk async for chunk in chunks])

    assert asyncio.run(main()) == CSV


def test_a_batch_without_an_invoice_is_an_error() -> None:
    def missing(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(404, json={"error": {"message": "no", "type": "invalid"}})

    http = httpx2.Client(transport=httpx2.MockTransport(missing))
    client = XALEN(api_key="xln_test_a", base_url="http://stub", http_client=http)
    with pytest.raises(openai.NotFoundError):
        list(client.invoices.lines("batch_1"))
