"""Live calls while processes die, PostgreSQL goes away and days end: each is billed once or not.

Each call of this module has a prompt of its own length, so the input tokens of a ledger's line tell
its call.
"""

import itertools
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal

import openai
import pytest

from tests.e2e import processes
from tests.e2e.stack import Stack
from tests.factories import CHAT_MODEL
from xalen_batch.billing import reconcile

CLIENTS = 6
# The model is busy, also with the permits that a killed process still holds for some seconds; a store
# is away.
COME_BACK = {429, 503}
_lengths = itertools.count(1)
FIRST_EVENT = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
CHUNK = b'data: {"choices": [{"index": 0, "delta": {"content": "Hello"}}]}\n\n'


@pytest.fixture(autouse=True)
def _served(services: Stack) -> Iterator[None]:
    yield
    services.database.heal()
    services.backend.target = ("127.0.0.1", services.model_port)
    services.backend.break_connections()
    if services.api.poll() is not None:
        services.restart_api()
    if services.worker.poll() is not None:
        services.worker = services.start("worker")
    services.wait_until_ready()


class Calls:
    """Calls of several threads at a time, with the prompt tokens of those that were answered."""

    def __init__(self, stack: Stack) -> None:
        self.answered: list[int] = []
        self.asked = 0
        # The statuses of the errors; None: a connection that broke.
        self.errors: list[int | None] = []
        self._stack = stack
        self._before = billed(stack)

    def ask(self, port: int | None = None, *, simulate: str = "") -> None:
        """Make one call, once."""
        self.asked += 1
        client = self._stack.client(retries=0)
        if port is not None:
            client = client.with_options(base_url=f"http://127.0.0.1:{port}/v1")
        content = "word " * next(_lengths)
        try:
            usage = client.chat.completions.create(
                model=CHAT_MODEL,
                messages=[{"role": "user", "content": content}],
                metadata={"simulate": simulate},
            ).usage
        except openai.APIStatusError as error:
            self.errors.append(error.status_code)
        except openai.APIConnectionError:
            self.errors.append(None)
        else:
            assert usage is not None
            self.answered.append(usage.prompt_tokens)

    @contextmanager
    def going_on(self, *ports: int) -> Iterator[None]:
        """Calls to these APIs without a pause, for as long as the block lasts."""
        over = threading.Event()

        def go_on(port: int) -> None:
            while not over.is_set():
                self.ask(port)
                if self.errors and self.errors[-1] is None:
                    over.wait(0.05)

        with ThreadPoolExecutor(CLIENTS) as clients:
            going = [
                clients.submit(go_on, port)
                for port, _ in zip(itertools.cycle(ports), range(CLIENTS), strict=False)
            ]
            try:
                yield
            finally:
                over.set()
        for each in going:
            each.result()

    def wait_for(self, more: int) -> None:
        """Wait for this many more answers."""
        count = len(self.answered)
        processes.wait_until(lambda: len(self.answered) >= count + more)

    @property
    def billed(self) -> Counter[int]:
        """The lines of ledgers since the first call."""
        return billed(self._stack) - self._before

    def are_billed_once(self) -> None:
        """Wait until each answered call is on a ledger, and assert that nothing else is."""
        processes.wait_until(lambda: self.billed.total() >= len(self.answered))
        assert self.billed == Counter(self.answered)


def billed(stack: Stack) -> Counter[int]:
    with stack.direct() as session:
        return Counter(tokens for (tokens,) in session.execute(LINES).fetchall())


LINES = (
    "SELECT r.input_tokens FROM results r JOIN batches ON id = batch_id WHERE ledger IS NOT NULL"
)


class TestKilled:
    def test_in_mid_call_nothing_is_billed(self, services: Stack) -> None:
        calls = Calls(services)
        with model(services) as at_model, ThreadPoolExecutor(1) as client:
            asked = client.submit(calls.ask)
            assert at_model.received.wait(60)
            services.kill(services.api)
            asked.result()
            assert calls.errors == [None]
            assert at_model.closed.wait(60)
        services.restart_api()
        calls.ask()
        calls.are_billed_once()

    def test_while_it_answers_no_call_is_billed_twice(self, services: Stack) -> None:
        calls = Calls(services)
        for _ in range(3):
            with calls.going_on(services.port):
                calls.wait_for(20)
                services.kill(services.api)
                services.restart_api()
                calls.wait_for(5)
        calls.ask()
        last = calls.answered[-1]
        processes.wait_until(lambda: calls.billed[last] == 1)
        assert set(calls.billed.values()) == {1}
        lost = Counter(calls.answered) - calls.billed
        # Those of the fraction of a second before each kill, and one of each thread whose answer
        # never came may be billed.
        assert lost.total() <= 3 * 2 * CLIENTS
        assert (calls.billed - Counter(calls.answered)).total() <= 3 * CLIENTS
        assert set(calls.errors) <= {None, *COME_BACK}


def has_free_permits(stack: Stack) -> bool:
    """Whether the model takes a call of each client at once."""
    calls = Calls(stack)
    with ThreadPoolExecutor(CLIENTS) as clients:
        for _ in range(CLIENTS):
            clients.submit(calls.ask, simulate="slow=500")
    calls.are_billed_once()
    return len(calls.answered) == CLIENTS


class TestStreamed:
    def test_the_models_own_stream_arrives_and_is_billed_as_it_says(self, services: Stack) -> None:
        before = billed(services)
        client = services.client(retries=0)
        *chunks, last = client.chat.completions.create(
            model=CHAT_MODEL,
            messages=[{"role": "user", "content": "word " * next(_lengths)}],
            stream=True,
            stream_options={"include_usage": True},
        )
        assert len(chunks) > 5
        assert chunks[-1].choices[0].finish_reason == "stop"
        with client.responses.stream(model=CHAT_MODEL, input="word " * next(_lengths)) as told:
            response = told.get_final_response()
        assert response.output_text
        assert last.usage
        assert response.usage
        expected = Counter([last.usage.prompt_tokens, response.usage.input_tokens])
        processes.wait_until(lambda: (billed(services) - before).total() >= 2)
        assert billed(services) - before == expected


class TestPostgres:
    @pytest.mark.parametrize(
        "fault",
        [lambda stack: stack.database.refuse(), lambda stack: stack.database.black_hole()],
        ids=["refused", "silence"],
    )
    def test_a_call_that_is_answered_meanwhile_is_billed_when_it_is_back(
        self, services: Stack, fault: Callable[[Stack], None]
    ) -> None:
        # A killed process still holds its permits for some seconds.
        processes.wait_until(lambda: has_free_permits(services))
        calls = Calls(services)
        calls.ask()
        with ThreadPoolExecutor(CLIENTS) as clients:
            accepted = services.backend.accepted
            services.backend.break_connections()
            asked = [clients.submit(calls.ask, simulate="slow=1500") for _ in range(CLIENTS)]
            processes.wait_until(lambda: services.backend.accepted >= accepted + CLIENTS)
            fault(services)
            for each in asked:
                each.result()
            assert len(calls.answered) == 1 + CLIENTS
        # The API keeps a caller in memory for a second, and asks no store meanwhile.
        processes.wait_until(lambda: calls.ask() or bool(calls.errors))
        assert calls.errors == [503]
        services.database.heal()
        calls.are_billed_once()

    def test_connections_that_break_all_the_time(self, services: Stack) -> None:
        calls = Calls(services)
        with calls.going_on(services.port):
            for _ in range(20):
                calls.wait_for(2)
                services.database.break_connections()
        assert set(calls.errors) <= COME_BACK
        calls.are_billed_once()


class TestStopped:
    def test_all_that_was_answered_is_recorded_before_it_ends(self, services: Stack) -> None:
        calls = Calls(services)
        with calls.going_on(services.port):
            calls.wait_for(20)
            processes.stopped_in(services.api)
        assert calls.billed == Counter(calls.answered)
        assert set(calls.errors) <= {None, *COME_BACK}

    def test_a_worker_is_killed_beside_them(self, services: Stack) -> None:
        calls = Calls(services)
        batch = services.submit(200)
        with calls.going_on(services.port):
            for _ in range(3):
                calls.wait_for(10)
                services.kill(services.worker)
                services.worker = services.start("worker")
        services.is_done(batch, lines=200)
        assert set(calls.errors) <= COME_BACK
        calls.are_billed_once()


class TestMidnight:
    def test_a_ledger_ends_while_two_apis_answer(self, services: Stack) -> None:
        calls = Calls(services)
        port, api = services.another_api()
        try:
            with calls.going_on(services.port, port):
                calls.wait_for(20)
                ended = end_the_day(services)
                calls.wait_for(20)
        finally:
            assert processes.stopped_in(api) < 30
        calls.are_billed_once()
        assert len(ended) == 1
        with services.direct() as session:
            processes.wait_until(
                lambda: session.execute(IS_SEALED, ended).fetchone() == (True,),
                log=services.folder / "worker.log",
            )
            (counts,) = session.execute(COUNTS, ended).fetchall()
        assert counts[0] == "completed"
        total, completed, lines, results, invoiced, charged = counts[1:]
        assert total == completed == lines == results
        assert invoiced == charged
        assert list(reconcile.differences(services.snapshot)) == []
        client = services.client()
        invoice = client.get(f"/batches/batch_{ended[0]}/invoice", cast_to=dict)
        assert Decimal(invoice["total"]) == charged
        month = client.get(f"/statements/{datetime.now(UTC):%Y-%m}", cast_to=dict)
        of_it = [line for line in month["lines"] if line["invoice_id"] == invoice["id"]]
        assert [Decimal(line["amount"]) for line in of_it] == [charged]


IS_SEALED = "SELECT sealed_at IS NOT NULL FROM batches WHERE id = %s"
COUNTS = """
    SELECT b.status, b.total, b.completed, t.lines, r.lines, i.total, r.charged
    FROM batches b
    JOIN tasks t ON t.batch_id = b.id
    JOIN invoices i ON i.batch_id = b.id,
    LATERAL (
        SELECT count(*) AS lines, sum(amount) AS charged FROM results WHERE batch_id = b.id
    ) r
    WHERE b.id = %s
"""


def end_the_day(stack: Stack) -> list[str]:
    """End the open ledgers of chats as midnight does; their ids, as hexadecimal digits."""
    with stack.direct() as session:
        ended = session.execute(
            "UPDATE batches SET expires_at = now(), lease_until = now(), ledger = 'ended ' || ledger"
            " WHERE ledger IS NOT NULL AND status = 'finalizing'"
            " AND endpoint = '/v1/chat/completions' RETURNING id"
        ).fetchall()
    return [id.hex for (id,) in ended]


class Model:
    """A model server that answers a call with its first event at most, and says when it ends.

    `breaks_off`: it closes the connection behind that event.
    """

    def __init__(self, *, breaks_off: bool) -> None:
        self._breaks_off = breaks_off
        self.received, self.closed = threading.Event(), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        with connection:
            request = b""
            while not request.endswith(b"}"):
                request += connection.recv(65_536)
            self.received.set()
            if b'"stream":true' in request:
                connection.sendall(FIRST_EVENT + b"%x\r\n" % len(CHUNK) + CHUNK + b"\r\n")
            if self._breaks_off:
                return
            try:
                while connection.recv(65_536):
                    pass
            except ConnectionError:
                pass
            self.closed.set()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(60)


@contextmanager
def model(stack: Stack, *, breaks_off: bool = False) -> Iterator[Model]:
    """This model in place of the simulated one."""
    server = Model(breaks_off=breaks_off)
    stack.backend.target = ("127.0.0.1", server.port)
    stack.backend.break_connections()
    try:
        yield server
    finally:
        stack.backend.target = ("127.0.0.1", stack.model_port)
        server.close()


class TestHungUp:
    @pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
    def test_the_model_is_told(self, services: Stack, is_streamed: bool) -> None:
        before = billed(services)
        with model(services) as at_model:
            with socket.create_connection(("127.0.0.1", services.port), timeout=60) as connection:
                connection.sendall(request(services.key, is_streamed=is_streamed))
                assert at_model.received.wait(60)
                if is_streamed:
                    assert b"Hello" in until(connection, b"Hello")
            assert at_model.closed.wait(2)
        # The client pays for the event that it was sent, and for no whole answer.
        processes.wait_until(lambda: (billed(services) - before).total() == is_streamed)
        calls = Calls(services)
        calls.ask()
        calls.are_billed_once()

    @pytest.mark.parametrize("breaks_off", [False, True], ids=["silence", "broken off"])
    def test_a_model_that_stops_in_mid_stream_ends_it_with_an_error(
        self, services: Stack, breaks_off: bool
    ) -> None:
        before = billed(services)
        with model(services, breaks_off=breaks_off):
            address = ("127.0.0.1", services.port)
            with socket.create_connection(address, timeout=60) as connection:
                connection.sendall(request(services.key, is_streamed=True))
                read = until(connection, b"0\r\n\r\n")
        assert b"Hello" in read
        assert b'"code":"model_broke_off"' in read
        calls = Calls(services)
        calls.ask()
        calls.are_billed_once()
        assert (billed(services) - before).total() == 1


def request(key: str, *, is_streamed: bool) -> bytes:
    content = "word " * next(_lengths)
    body = (
        f'{{"model": "{CHAT_MODEL}", "stream": {str(is_streamed).lower()}, "messages":'
        f' [{{"role": "user", "content": "{content}"}}]}}'
    )
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    ).encode()


def until(connection: socket.socket, words: bytes) -> bytes:
    """Bytes up to these words at least, or up to the end."""
    read = b""
    while words not in read and (part := connection.recv(65_536)):
        read += part
    return read
