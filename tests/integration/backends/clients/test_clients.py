"""Both HTTP clients against raw sockets: the guarantees of their contract."""

import asyncio
import gzip
import resource
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable

import pytest

from tests.hostile.answers import ENDLESS
from tests.integration.backends import hostile
from tests.integration.backends.hostile import GOOD, Answer, Hostile, raw, reply
from tests.waiting import PATIENCE
from xalen_batch.backends.buffer import READ_BYTES, Buffer
from xalen_batch.backends.clients.choose import client_for
from xalen_batch.backends.clients.connection import HEAD_BYTES, Connection
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
from xalen_batch.backends.clients.plain import PlainClient

LIMITS = Limits(request_timeout=PATIENCE, connect_timeout=PATIENCE, answer_bytes=1024 * 1024)
LIMITS_IN_A_HURRY = Limits(request_timeout=2, connect_timeout=PATIENCE, answer_bytes=1024 * 1024)
Make = Callable[[str, Limits], Client]


def plain(url: str, limits: Limits) -> Client:
    return PlainClient(url, {"x-extra": "yes"}, limits, Buffer())


def full(url: str, limits: Limits) -> Client:
    return FullClient(url, {"x-extra": "yes"}, limits, Buffer(), is_direct=True, connections=8)


@pytest.fixture(params=[plain, full])
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


def play(
    make: Make, act: Callable[[Client, Hostile], Awaitable[None]], limits: Limits = LIMITS
) -> Hostile:
    """Run `act` with a client of a server that misbehaves as told, and return that server."""

    async def main() -> Hostile:
        async with hostile.hostile() as server, asyncio.timeout(PATIENCE):
            client = make(server.base_url, limits)
            try:
                await act(client, server)
            finally:
                await client.close()
        return server

    return asyncio.run(main())


def ask(make: Make, answer: Answer, body: bytes = b"{}", limits: Limits = LIMITS) -> Reply:
    replies: list[Reply] = []

    async def act(client: Client, server: Hostile) -> None:
        server.answer = answer
        replies.append(await client.post("/x", body, "req_1"))

    play(make, act, limits)
    return replies[0]


def test_a_request_has_its_path_headers_id_and_body(make: Make) -> None:
    async def act(client: Client, server: Hostile) -> None:
        await client.post("/chat/completions", b'{"a":1}', "req_7")

    (seen,) = play(make, act).seen
    head = seen.head.lower()
    assert head.startswith("post /v1/chat/completions http/1.1\r\n")
    assert "x-request-id: req_7\r\n" in head
    assert "x-extra: yes\r\n" in head
    assert "\r\nhost: 127.0.0.1:" in head
    assert seen.body == b'{"a":1}'


def test_status_body_and_headers_come_back(make: Make) -> None:
    found = ask(make, reply(b"[1]", "429 Too Many", Retry_After="7"))
    assert (found.status, found.body, found.header("retry-after"), found.header("x-none")) == (
        429,
        b"[1]",
        "7",
        None,
    )


@pytest.mark.parametrize(
    "encoded",
    [
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding:"
            b" chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n"
        ),
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabcdefg",
        b"HTTP/1.0 200 OK\r\n\r\nabcdefg",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nabcdefg",
        (
            b"HTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length:"
            b" 7\r\n\r\nabcdefg"
        ),
    ],
)
def test_every_way_to_end_an_answer_is_understood(make: Make, encoded: bytes) -> None:
    assert ask(make, raw(encoded)).body == b"abcdefg"


def test_an_answer_in_single_bytes_is_put_together(make: Make) -> None:
    async def dripping(writer: asyncio.StreamWriter) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nx-a: b\r\ncontent-length: 4\r\n\r\nabcd":
            writer.write(bytes([byte]))
            await writer.drain()

    found = ask(make, dripping)
    assert (found.body, found.header("x-a")) == (b"abcd", "b")


@pytest.mark.parametrize("size", [0, 100, 300_000, 8 * 1024 * 1024])
def test_bodies_of_any_size_arrive_whole(make: Make, size: int) -> None:
    async def act(client: Client, server: Hostile) -> None:
        assert (await client.post("/x", b"z" * size, "req_1")).body == GOOD

    assert len(play(make, act).seen[0].body) == size


def test_a_connection_is_used_again_and_none_is_shared(make: Make) -> None:
    writers: set[int] = set()

    async def act(client: Client, server: Hostile) -> None:
        async def slow(writer: asyncio.StreamWriter) -> None:
            writers.add(id(writer))
            await asyncio.sleep(0.02)
            await reply(GOOD)(writer)

        server.answer = slow
        for _ in range(5):
            assert [
                found.body
                for found in await asyncio.gather(
                    *(client.post("/x", b"{}", "r") for _ in range(4))
                )
            ] == [GOOD] * 4

    play(make, act)
    assert len(writers) == 4


def test_a_connection_that_the_server_closed_while_it_was_idle_is_replaced() -> None:
    async def act(client: Client, server: Hostile) -> None:
        open_: list[asyncio.StreamWriter] = []

        async def once(writer: asyncio.StreamWriter) -> None:
            open_.append(writer)
            await reply(GOOD)(writer)

        server.answer = once
        await client.post("/x", b"{}", "req_1")
        # The client still keeps the connection: it learns of its end after or just before it sends
        # the next request.
        open_[0].transport.abort()
        assert (await client.post("/x", b"{}", "req_2")).body == GOOD

    play(plain, act)


def test_a_server_that_closes_every_connection_without_a_word_is_not_asked_for_ever(
    make: Make,
) -> None:
    async def act(client: Client, server: Hostile) -> None:
        server.answer = raw(b"")
        with pytest.raises(NoReply):
            await client.post("/x", b"{}", "req_1")
        assert len(server.seen) == 1

    play(make, act)


def test_more_than_an_answer_is_not_taken_for_the_next() -> None:
    """If a server sends two answers to one request, no request gets the second."""

    async def act(client: Client, server: Hostile) -> None:
        encoded = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"
        server.answer = twice(encoded + b"one" + encoded + b"two")
        assert (await client.post("/x", b"{}", "req_1")).body == b"one"
        server.answer = reply(b"own")
        assert (await client.post("/x", b"{}", "req_2")).body == b"own"
        server.answer = twice(encoded + b"one" + b"HTTP/1.1 2")
        assert (await client.post("/x", b"{}", "req_3")).body == b"one"
        server.answer = reply(b"own")
        assert (await client.post("/x", b"{}", "req_4")).body == b"own"

    def twice(encoded: bytes) -> Answer:
        async def answer(writer: asyncio.StreamWriter) -> None:
            writer.write(encoded)

        return answer

    play(plain, act)


@pytest.mark.parametrize(
    "encoded",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\n{",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\x02\x00",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello",
    ],
)
def test_what_is_no_whole_answer_is_none(encoded: bytes) -> None:
    with pytest.raises(NoReply):
        ask(plain, raw(encoded))


def test_a_head_without_end_is_given_up() -> None:
    with pytest.raises(NoReply, match="head"):
        ask(plain, raw(b"HTTP/1.1 200 OK\r\n" + b"x-a: b\r\n" * (HEAD_BYTES // 4)))


def test_an_answer_that_was_compressed_unasked_is_understood() -> None:
    assert ask(plain, reply(gzip.compress(GOOD), Content_Encoding="gzip")).body == GOOD
    assert ask(plain, reply(zlib.compress(GOOD), Content_Encoding="deflate")).body == GOOD
    assert ask(plain, reply(GOOD, Content_Encoding="identity")).body == GOOD


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"not gzip", "gzip"),
        (gzip.compress(GOOD, mtime=0)[:-12], "gzip"),
        (b"\x0b\x02\x80abc\x03", "br"),
        (b"(\xb5/\xfd", "zstd"),
    ],
)
def test_what_cannot_be_decompressed_is_no_answer(body: bytes, encoding: str) -> None:
    with pytest.raises(NoReply):
        ask(plain, reply(body, Content_Encoding=encoding))


@pytest.mark.parametrize("answer", [hostile.huge, hostile.gzip_bomb])
def test_an_answer_beyond_the_cap_is_not_read(make: Make, answer: Answer) -> None:
    with pytest.raises(AnswerTooLong):
        ask(make, answer)


# pyreqwest's parser skips these without counting them.
SKIPPED_BY_FULL = ("1xx answers", "1xx answers with headers", "a chunk's size")


@pytest.mark.parametrize(
    ("make", "way"),
    [(plain, way) for way in ENDLESS]
    + [(full, way) for way in ENDLESS if way not in SKIPPED_BY_FULL],
)
def test_an_answer_without_end_is_given_up_after_a_bounded_number_of_bytes(
    make: Make, way: str
) -> None:
    async def act(client: Client, server: Hostile) -> None:
        server.answer = hostile.endless(way)
        (outcome,) = await asyncio.gather(client.post("/x", b"{}", "req_1"), return_exceptions=True)
        if way == "answers":
            assert isinstance(outcome, Reply)
        else:
            assert isinstance(outcome, NoReply)
            assert not isinstance(outcome, TimedOut)
        # The server still serves; the connection that it flooded is not used again.
        server.answer = reply(GOOD)
        assert (await client.post("/x", b"{}", "req_2")).body == GOOD

    assert play(make, act).failures == []


@pytest.mark.parametrize("way", SKIPPED_BY_FULL)
def test_what_the_kept_library_skips_without_end_takes_its_time_and_no_memory(way: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # It times out, or sees the end of MOST_ENDLESS bytes on a fast machine.
    with pytest.raises(NoReply):
        ask(full, hostile.endless(way), limits=Limits(0.3, 2, 1024 * 1024))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


def test_a_body_in_chunks_of_two_bytes_takes_no_more_than_a_few_times_its_size(make: Make) -> None:
    count = 20_000
    encoded = (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        + b"2\r\nab\r\n" * count
        + b"0\r\n\r\n"
    )
    tracemalloc.start()
    try:
        assert ask(make, raw(encoded)).body == b"ab" * count
        assert tracemalloc.get_traced_memory()[1] < 3 * len(encoded)
    finally:
        tracemalloc.stop()


def test_more_headers_than_any_server_sends_end_the_connection(make: Make) -> None:
    headers = b"".join(b"x-%d: a\r\n" % number for number in range(2_000))
    with pytest.raises(NoReply):
        ask(make, raw(b"HTTP/1.1 200 OK\r\n" + headers + b"content-length: 2\r\n\r\n{}"))


def test_an_answer_that_announces_more_than_the_cap_is_refused_at_its_head() -> None:
    async def act(client: Client, server: Hostile) -> None:
        async def announced(writer: asyncio.StreamWriter) -> None:
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (LIMITS.answer_bytes + 1)
            )
            with pytest.raises(AnswerTooLong):
                await asked

        server.answer = announced
        asked = asyncio.create_task(client.post("/x", b"{}", "req_1"))
        await asyncio.wait([asked])
        assert isinstance(asked.exception(), AnswerTooLong)

    play(plain, act)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 408 Request Timeout\r\n\r\n",
    ],
)
def test_a_server_that_answers_or_closes_before_the_request_is_sent_is_noticed(said: bytes) -> None:
    """The client does not wait for the request's timeout."""

    class Slow(PlainClient):
        """Sends the request only after the connection has ended."""

        async def _connect(self, deadline: float) -> Connection:
            connection = await super()._connect(deadline)
            while connection.is_open:
                await asyncio.sleep(0)
            return connection

    async def too_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(too_early, "127.0.0.1", 0) as server:
            client = Slow(
                f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", {}, LIMITS, Buffer()
            )
            with pytest.raises(NoReply) as raised:
                await client.post("/x", b"{}", "req_1")
            assert not isinstance(raised.value, TimedOut)
            await client.close()

    asyncio.run(main())


@pytest.mark.parametrize("is_compressed", [False, True])
def test_answers_that_come_together_are_read_within_the_buffer(
    make: Make, is_compressed: bool
) -> None:
    most, size, count = 300_000, 1_000_000, 8
    body = b" " * size
    held: list[int] = []

    async def act(client: Client, server: Hostile) -> None:
        server.answer = (
            reply(gzip.compress(body), content_encoding="gzip") if is_compressed else reply(body)
        )
        buffer: Buffer = client._buffer  # type: ignore[attr-defined]
        buffer.most = most

        async def ask_and_record() -> None:
            assert len((await client.post("/x", b"{}", "r")).body) == size
            buffer.answered(size)
            held.append(buffer.held)
            await asyncio.sleep(0.01)
            held.append(buffer.held)
            buffer.recorded(size)

        await asyncio.gather(*(ask_and_record() for _ in range(count)))
        assert buffer.held == 0

    play(make, act)
    # Each may have been read once more before it was paused, and one is read to its end.
    assert max(held) <= most + count * 2 * READ_BYTES + size


def test_the_time_in_which_an_answer_is_not_read_is_not_its_requests(make: Make) -> None:
    async def act(client: Client, server: Hostile) -> None:
        server.answer = reply(b" " * 1_000_000)
        buffer: Buffer = client._buffer  # type: ignore[attr-defined]
        buffer.most = 100_000
        buffer.answered(100_000)
        asked = asyncio.create_task(client.post("/x", b"{}", "r"))
        while not buffer._paused:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.5 * LIMITS_IN_A_HURRY.request_timeout)
        assert not asked.done()
        buffer.recorded(100_000)
        assert len((await asked).body) == 1_000_000

    play(make, act, LIMITS_IN_A_HURRY)


@pytest.mark.parametrize("answer", [hostile.never, hostile.drip, hostile.drip_head])
def test_the_total_time_is_bounded(make: Make, answer: Answer) -> None:
    with pytest.raises(TimedOut):
        ask(make, answer, limits=Limits(1, PATIENCE, 1024))


def test_each_request_has_a_time_of_its_own() -> None:
    """A later request is not aborted together with an earlier one."""

    async def act(client: Client, server: Hostile) -> None:
        server.answer = hostile.never
        first = asyncio.create_task(client.post("/x", b"{}", "req_1"))
        while not server.seen:
            await asyncio.sleep(0)
        await asyncio.sleep(1)

        async def soon(writer: asyncio.StreamWriter) -> None:
            with pytest.raises(TimedOut):
                await first
            await reply(GOOD)(writer)

        server.answer = soon
        assert (await client.post("/x", b"{}", "req_2")).body == GOOD

    play(plain, act, Limits(2, PATIENCE, 1024))


def test_nobody_listens(make: Make) -> None:
    async def main() -> None:
        client = make("http://127.0.0.1:1/v1", LIMITS)
        try:
            with pytest.raises(NotConnected):
                await client.post("/x", b"{}", "req_1")
        finally:
            await client.close()

    asyncio.run(main())


def test_giving_up_closes_the_connection_and_leaves_the_others(make: Make) -> None:
    async def act(client: Client, server: Hostile) -> None:
        server.answer = hostile.never
        given_up = asyncio.create_task(client.post("/x", b"{}", "req_1"))
        while not server.seen:
            await asyncio.sleep(0)
        server.answer = reply(GOOD)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert (await client.post("/x", b"{}", "req_2")).body == GOOD

    play(make, act)


@pytest.mark.parametrize(
    ("url", "proxies", "kind"),
    [
        ("http://gpu.internal:8000/v1", {}, PlainClient),
        ("http://[::1]:8000/v1", {}, PlainClient),
        ("https://api.example.com/v1", {}, FullClient),
        ("http://user:secret@gpu.internal/v1", {}, FullClient),
        ("http://gpu.internal/v1?api-version=1", {}, FullClient),
        ("http://gpu.internal:8000/v1", {"HTTP_PROXY": "http://proxy:3128"}, FullClient),
        ("http://gpu.internal:8000/v1", {"ALL_PROXY": "http://proxy:3128"}, FullClient),
        (
            "http://gpu.internal:8000/v1",
            {"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": ".internal"},
            PlainClient,
        ),
        ("http://127.0.0.1:8000/v1", {"HTTP_PROXY": "http://proxy:3128"}, PlainClient),
        ("http://localhost:8000/v1", {"HTTP_PROXY": "http://proxy:3128"}, PlainClient),
    ],
)
def test_plain_http_without_a_proxy_goes_the_cheap_way(
    url: str, proxies: dict[str, str], kind: type[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)

    async def main() -> Client:
        client = client_for(url, {}, LIMITS, Buffer(), connections=8)
        await client.close()
        return client

    assert isinstance(asyncio.run(main()), kind)


EVENT_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
FIRST = EVENT_STREAM + b"transfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n"


def test_a_stream_is_read_as_it_arrives() -> None:
    read: list[bytes] = []

    async def act(client: Client, server: Hostile) -> None:
        goes_on = asyncio.Event()

        async def answer(writer: asyncio.StreamWriter) -> None:
            writer.write(FIRST)
            await goes_on.wait()
            writer.write(b"4\r\nlast\r\n0\r\n\r\n")

        server.answer = answer
        assert isinstance(client, FullClient)
        async with client.stream("/x", b"{}", "req_1") as streamed:
            async for chunk in streamed.chunks:
                read.append(chunk)
                goes_on.set()

    play(full, act)
    assert read == [b"first", b"last"]


async def stop(writer: asyncio.StreamWriter) -> None:
    writer.write(FIRST)
    await asyncio.Event().wait()


@pytest.mark.parametrize(("answer", "error"), [(raw(FIRST), NoReply), (stop, TimedOut)])
def test_a_stream_that_breaks_off_tells_the_task_that_reads_it(
    answer: Answer, error: type[NoReply]
) -> None:
    async def act(client: Client, server: Hostile) -> None:
        server.answer = answer
        assert isinstance(client, FullClient)
        async with client.stream("/x", b"{}", "req_1") as streamed:

            async def read() -> None:
                async for chunk in streamed.chunks:
                    assert chunk == b"first"

            with pytest.raises(error):
                # Not the task that opened it, as where a web framework sends the body.
                await asyncio.create_task(read())

    play(full, act, LIMITS_IN_A_HURRY)
