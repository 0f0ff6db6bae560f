"""The simulated models over HTTP: keep-alive, pipelining, chunked bodies, faults, clean end."""

import asyncio
import json
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.waiting import PATIENCE, wait_until
from xalen_batch import catalog
from xalen_batch.backends.simulated.server import Simulator, close, listen

MODELS = catalog.read(None)
MISTRAL = "mistral-small-3-1"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
TOOL: Any = {
    "type": "function",
    "name": "find",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
BODY = json.dumps(
    {"model": "mistral-small-3-1", "messages": [{"role": "user", "content": "Hello"}]}
).encode()
SERVE = (
    "import sys; from xalen_batch.backends.simulated.server import serve; serve('127.0.0.1', 0,"
    " latency_ms=int(sys.argv[1]))"
)


def post(body: bytes, path: str = "/v1/chat/completions", *headers: str) -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    return (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{lines}\r\n".encode()
        + body
    )


def exchange(sent: bytes, **simulator: Any) -> list[tuple[int, bytes]]:
    """Send bytes on one connection, which ends with them; the answers as (status, body)."""

    async def main() -> list[tuple[int, bytes]]:
        shared = Simulator(MODELS, **{"latency_ms": 0, **simulator})
        server = await listen(shared, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", server.sockets[0].getsockname()[1]
        )
        writer.write(sent + b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        received = await reader.read()
        writer.close()
        await close(server, shared)
        return list(answers(received))

    return asyncio.run(main())


def answers(received: bytes) -> Iterator[tuple[int, bytes]]:
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.startswith(b"content-length")
        )
        yield int(head.split(b" ")[1]), rest[:length]
        received = rest[length:]


def test_pipelined_requests_are_answered_in_their_order() -> None:
    slow = json.dumps({**json.loads(BODY), "metadata": {"simulate": "slow=100"}}).encode()
    first, second, third, health = exchange(post(slow) + post(BODY) + post(b"{}"))
    assert [first[0], second[0], third[0], health[0]] == [200, 200, 400, 200]
    assert json.loads(first[1])["id"] != json.loads(second[1])["id"]
    assert json.loads(health[1]) == {"status": "ok"}


def test_chunked_bodies_are_read() -> None:
    chunked = (
        b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:10], BODY[10:]))
        + b"0\r\n\r\n"
    )
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        + chunked
    )
    assert [status for status, _ in exchange(request)] == [200, 200]


@pytest.mark.parametrize(
    "name", ["mistral-small-3-1", "mistralai/Mistral-Small-3.1-24B-Instruct-2503"]
)
def test_models_answer_to_their_ids_and_to_their_backends_names(name: str) -> None:
    (status, body), _ = exchange(post(json.dumps({**json.loads(BODY), "model": name}).encode()))
    assert (status, json.loads(body)["model"]) == (200, name)


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (post(json.dumps({**json.loads(BODY), "model": "gpt-5"}).encode()), 404, "model_not_found"),
        (post(b"{"), 400, "invalid_request"),
        (post(b""), 400, "invalid_request"),
        (post(BODY, "/v1/moderations"), 404, "not_found"),
        (b"GET /v1/rerank HTTP/1.1\r\nhost: x\r\n\r\n", 405, "method_not_allowed"),
    ],
)
def test_wrong_requests_are_told_why_on_a_connection_that_lives_on(
    request_: bytes, status: int, code: str
) -> None:
    wrong, health = exchange(request_)
    assert (wrong[0], json.loads(wrong[1])["error"]["code"], health[0]) == (status, code, 200)


def test_what_is_not_http_is_answered_and_the_connection_closed() -> None:
    (only,) = exchange(b"\x16\x03\x01 hello\r\n\r\n")
    assert only[0] == 400


def test_a_response_repeats_a_number_of_more_than_64_bits() -> None:
    body = json.dumps({"model": MISTRAL, "input": "Hello", "store": 2**70}).encode()
    (status, answer), _ = exchange(post(body, "/v1/responses"))
    assert (status, json.loads(answer)["store"]) == (200, 2**70)


def test_faults_from_outside_come_at_their_rate_and_by_seed() -> None:
    sent = post(BODY) * 200
    first = [status for status, _ in exchange(sent, fault_rate=0.25, fault="status=503", seed=7)]
    assert 25 <= first.count(503) <= 75
    assert first == [
        status for status, _ in exchange(sent, fault_rate=0.25, fault="status=503", seed=7)
    ]


def test_an_unknown_fault_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="explode"):
        Simulator(MODELS, fault="explode")


Use = Callable[[openai.OpenAI, Simulator], None]


def with_client(use: Use, **simulator: Any) -> None:
    """Let the official client use a server of its own."""

    async def main() -> None:
        shared = Simulator(MODELS, **{"latency_ms": 0, **simulator})
        server = await listen(shared, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        with openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=PATIENCE) as client:
            await asyncio.to_thread(use, client, shared)
        await close(server, shared)

    asyncio.run(main())


def test_the_official_client_works_against_it() -> None:
    def use(client: openai.OpenAI, _: Simulator) -> None:
        listed = list(client.models.list())
        assert [model.id for model in listed] == list(MODELS)
        # `models add` reads the context window where vLLM has it.
        assert [model.model_extra for model in listed] == [
            {"max_model_len": model.context_window} for model in MODELS.values()
        ]
        completion = client.chat.completions.create(model=MISTRAL, messages=HELLO)
        assert completion.system_fingerprint == "simulated"
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="other", messages=HELLO)

    with_client(use)


class TestStreams:
    def test_a_chat(self) -> None:
        def use(client: openai.OpenAI, _: Simulator) -> None:
            chunks = list(
                client.chat.completions.create(model=MISTRAL, messages=HELLO, stream=True)
            )
            assert len(chunks) > 5
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert chunks[-1].choices[0].finish_reason == "stop"
            assert {chunk.usage for chunk in chunks} == {None}
            with client.chat.completions.stream(
                model=MISTRAL, messages=HELLO, stream_options={"include_usage": True}
            ) as stream:
                whole = stream.get_final_completion()
            assert whole.usage
            assert whole.usage.prompt_tokens > 0
            assert whole.usage.total_tokens > whole.usage.prompt_tokens

        with_client(use)

    def test_a_completion(self) -> None:
        def use(client: openai.OpenAI, _: Simulator) -> None:
            *texts, usage = client.completions.create(
                model=MISTRAL, prompt="Hi", stream=True, stream_options={"include_usage": True}
            )
            assert "".join(chunk.choices[0].text for chunk in texts)
            assert usage.choices == []
            assert usage.usage
            assert usage.usage.completion_tokens > 0

        with_client(use)

    def test_a_response(self) -> None:
        def use(client: openai.OpenAI, _: Simulator) -> None:
            with client.responses.stream(model=MISTRAL, input="Hello", max_output_tokens=9) as told:
                events = list(told)
                final = events[-1]
            assert final.type == "response.incomplete"
            deltas = [each.delta for each in events if each.type == "response.output_text.delta"]
            assert "".join(deltas) == final.response.output_text
            assert final.response.usage
            assert final.response.usage.output_tokens == 9

        with_client(use)

    def test_the_tool_calls_of_a_response(self) -> None:
        def use(client: openai.OpenAI, _: Simulator) -> None:
            with client.responses.stream(
                model=MISTRAL, input="Hello", tools=[TOOL], tool_choice="required"
            ) as told:
                final = told.get_final_response()
            (call,) = final.output
            assert call.type == "function_call"
            assert (call.name, "city" in json.loads(call.arguments)) == ("find", True)

        with_client(use)

    def test_its_form_on_the_wire(self) -> None:
        async def main() -> None:
            shared = Simulator(MODELS, latency_ms=0)
            server = await listen(shared, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                post(json.dumps({**json.loads(BODY), "stream": True}).encode())
                + post(BODY, "/v1/chat/completions", "connection: close")
            )
            streamed, _, whole = (await reader.read()).partition(b"0\r\n\r\n")
            assert b"content-type: text/event-stream" in streamed
            assert streamed.endswith(b"data: [DONE]\n\n\r\n")
            # The connection lives on, and the next answer waits for the end of the stream.
            assert whole.startswith(b"HTTP/1.1 200 OK")
            writer.close()
            await close(server, shared)

        asyncio.run(main())

    def test_an_error_is_no_stream(self) -> None:
        def use(client: openai.OpenAI, _: Simulator) -> None:
            with pytest.raises(openai.InternalServerError) as raised:
                stream(client, "status=503;retry_after=1")
            assert raised.value.response.headers["retry-after"] == "1"

        with_client(use)

    @pytest.mark.parametrize(("fault", "begins"), [("truncate", True), ("reset", False)])
    def test_a_connection_that_breaks(self, fault: str, begins: bool) -> None:
        def use(client: openai.OpenAI, _: Simulator) -> None:
            chunks: list[ChatCompletionChunk] = []
            with pytest.raises(openai.APIConnectionError):
                chunks.extend(stream(client, fault))
            assert bool(chunks) == begins

        with_client(use)

    def test_without_usage(self) -> None:
        def use(client: openai.OpenAI, _: Simulator) -> None:
            assert {chunk.usage for chunk in stream(client, "no_usage")} == {None}

        with_client(use)

    def test_events_are_spread_over_the_latency_and_end_with_their_client(self) -> None:
        def use(client: openai.OpenAI, simulator: Simulator) -> None:
            # A whole answer would take minutes.
            with stream(client, "slow=90000") as told:
                assert next(iter(told)).choices[0].delta.role == "assistant"
                (connection,) = simulator.connections
                (pending,) = connection.pending
                assert pending.timer is not None
                assert not pending.timer.cancelled()
            wait_until(lambda: not simulator.connections)
            assert pending.timer.cancelled()

        with_client(use)


def stream(client: openai.OpenAI, simulate: str) -> openai.Stream[ChatCompletionChunk]:
    return client.chat.completions.create(
        model=MISTRAL,
        messages=HELLO,
        stream=True,
        stream_options={"include_usage": True},
        metadata={"simulate": simulate},
    )


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_after_the_answers_in_flight(end: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, "300"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        port = int(process.stderr.readline().split("127.0.0.1:")[1].split("/")[0])
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            # Both arrive at once, so the first answer says that the second request is in flight.
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" + post(BODY))
            received = connection.recv(65_536)
            process.send_signal(end)
            while more := connection.recv(65_536):
                received += more
        assert [status for status, _ in answers(received)] == [200, 200]
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()


def test_an_answer_whose_client_has_gone_is_dropped_in_silence() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, "300"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        port = int(process.stderr.readline().split("127.0.0.1:")[1].split("/")[0])
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as gone:
            gone.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" + post(BODY) * 2)
            gone.recv(65_536)
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Asked later, answered later: by then those of the other were due.
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as other:
            other.sendall(
                post(BODY) + b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            )
            received = b""
            while more := other.recv(65_536):
                received += more
        assert [status for status, _ in answers(received)] == [200, 200]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
