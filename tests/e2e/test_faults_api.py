"""An API that is killed or stopped at any moment: no half file or batch, and a repeated request
creates one object.
"""

import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.e2e import processes
from tests.e2e.stack import Answer, Stack
from tests.integration.conftest import multipart

MiB = 1024 * 1024


@pytest.fixture(autouse=True)
def _served(services: Stack) -> Iterator[None]:
    yield
    if services.api.poll() is not None:
        services.restart_api()


def inputs(stack: Stack) -> set[Path]:
    return set((stack.folder / "data" / "files" / "input").glob("*"))


def half_an_upload(stack: Stack, port: int) -> socket.socket:
    """A connection over which half of a file has come."""
    kind, body = multipart(("purpose", None, b"batch"), ("file", "a.jsonl", bytes(24 * MiB)))
    sending = socket.create_connection(("127.0.0.1", port), timeout=60)
    named = (
        f"authorization: Bearer {stack.key}\r\ncontent-type: {kind}\r\ncontent-length:"
        f" {len(body)}\r\n"
    )
    before = inputs(stack)
    sending.sendall(
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\n{named}\r\n".encode() + body[: 12 * MiB]
    )
    processes.wait_until(lambda: bool(inputs(stack) - before))
    return sending


class TestKilled:
    def test_in_mid_upload(self, services: Stack) -> None:
        client = services.client()
        known = {file.id for file in client.files.list()}
        before = inputs(services)
        with half_an_upload(services, services.port):
            services.kill(services.api)
        services.restart_api()
        assert {file.id for file in client.files.list()} == known
        # The remains are no stored object: the sweep removes them when they are old.
        left = inputs(services) - before
        assert left
        assert all("#" in path.name for path in left)
        for path in left:
            path.unlink()

    def test_while_batches_are_created(self, services: Stack) -> None:
        file = services.upload(1)
        batch = {
            "input_file_id": file,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        first = services.client(retries=0)

        def create(client: openai.OpenAI, key: str) -> str | None:
            try:
                return client.batches.create(**batch, extra_headers={"Idempotency-Key": key}).id  # type: ignore[arg-type]
            except openai.APIConnectionError:
                return None

        keys = [f"killed-{n}" for n in range(60)]
        answered: dict[str, str | None] = {}
        with ThreadPoolExecutor(8) as clients:
            asked = {key: clients.submit(create, first, key) for key in keys}
            processes.wait_until(lambda: sum(call.done() for call in asked.values()) >= 10)
            services.kill(services.api)
            answered = {key: call.result() for key, call in asked.items()}
        assert None in answered.values(), "it was killed too late"
        services.restart_api()
        again = {key: create(services.client(), key) for key in keys}
        assert None not in again.values()
        assert all(again[key] == id for key, id in answered.items() if id is not None)
        assert len(set(again.values())) == len(keys)
        made = [
            found.id
            for found in services.client().batches.list(limit=100)
            if found.input_file_id == file
        ]
        assert sorted(made) == sorted(again.values())  # type: ignore[type-var]

    def test_in_mid_download(self, services: Stack) -> None:
        client = services.client()
        content = bytes(range(256)) * 4 * 16 * 1024
        file = client.files.create(file=("a.bin", content), purpose="user_data")
        connection = http.client.HTTPConnection("127.0.0.1", services.port, timeout=60)
        connection.request(
            "GET",
            f"/v1/files/{file.id}/content",
            headers={"authorization": f"Bearer {services.key}"},
        )
        answer = connection.getresponse()
        assert answer.read(MiB) == content[:MiB]
        services.kill(services.api)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            answer.read()
        connection.close()
        services.restart_api()
        assert client.files.content(file.id).content == content


class TestStopped:
    def test_a_rolling_restart_under_load(self, services: Stack) -> None:
        batch = services.submit_and_wait_for_some()
        answers: list[Answer] = []
        broken: list[Exception] = []
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                try:
                    answers.append(services.ask("GET", f"/v1/batches/{batch.id}"))
                except ConnectionRefusedError:
                    # Refused connection: a proxy sends the request to the next API.
                    over.wait(0.05)
                except (OSError, http.client.HTTPException) as error:
                    # The request was sent: a proxy may not send it twice.
                    broken.append(error)

        with ThreadPoolExecutor(4) as clients:
            for _ in range(4):
                clients.submit(ask)
            try:
                processes.wait_until(lambda: len(answers) > 10)
                begun = time.monotonic()
                services.api.send_signal(signal.SIGTERM)
                services.api.wait(60)
                stopped_in = time.monotonic() - begun
                services.restart_api()
                count = len(answers)
                processes.wait_until(lambda: len(answers) > count + 10)
            finally:
                over.set()
        assert stopped_in < 30
        assert broken == []
        assert all(answer.status == 200 or answer.is_come_back_later for answer in answers)
        services.is_done(batch)

    def test_what_was_sent_before_it_stopped_listening_is_answered(self, services: Stack) -> None:
        port, api = services.another_api(long_requests=24, long_requests_per_account=24)
        kept = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(4)]
        for connection in kept:
            assert ask(connection, services.key)[0] == 200
        # Frozen for longer than uvicorn's tick of 0.1 s, it looks for the signal before it looks at
        # its sockets.
        api.send_signal(signal.SIGSTOP)
        new = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(20)]
        late = new.pop()
        late.connect()
        for number, connection in enumerate(kept + new):
            send(connection, services.key, "POST" if number % 2 else "GET")
        api.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        api.send_signal(signal.SIGCONT)
        # Connected before the stop, and its request comes during it.
        send(late, services.key, "POST")
        answers = [connection.getresponse() for connection in [*kept, *new, late]]
        assert [answer.status for answer in answers] == [200] * 24
        assert api.wait(30) is not None
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))

    def test_with_a_delay_it_takes_connections_and_says_that_it_stops(
        self, services: Stack
    ) -> None:
        port, api = services.another_api(shutdown_delay=600, shutdown_grace=0)
        api.send_signal(signal.SIGTERM)
        processes.wait_until(
            lambda: not processes.answers(f"http://127.0.0.1:{port}/readyz"), timeout=60
        )
        fresh = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        status, closes, _ = ask(fresh, services.key)
        assert (status, closes) == (200, "close")
        status, _, body = ask(fresh, services.key, path="/readyz")
        assert status == 503
        assert json.loads(body)["checks"]["server"] == {
            "status": "failed",
            "error": "the server is stopping",
        }
        api.kill()

    def test_an_upload_that_outlives_the_grace_is_told_to_come_back(self, services: Stack) -> None:
        port, api = services.another_api(shutdown_grace=1)
        before = inputs(services)
        with half_an_upload(services, port) as sending:
            api.send_signal(signal.SIGTERM)
            answer = b""
            while part := sending.recv(65_536):
                answer += part
        api.wait(30)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 5" in head.lower()
        assert json.loads(body)["error"]["code"] == "service_unavailable"
        assert inputs(services) == before

    def test_a_worker_gives_its_tasks_back_at_once(self, services: Stack) -> None:
        processes.stopped_in(services.worker)
        # A lease that is longer than the test.
        holder = services.start("worker", lease=600)
        try:
            batch = services.submit_and_wait_for_some()
            assert processes.stopped_in(holder) < 30
            with services.direct() as session:
                held = (
                    "SELECT count(*) FILTER (WHERE state = 'running'), count(*) FILTER (WHERE state"
                    " = 'pending') FROM tasks WHERE batch_id = %s"
                )
                running, pending = session.execute(
                    held, [batch.id.removeprefix("batch_")]
                ).fetchone() or (None, None)
            assert running == 0
            assert pending
        finally:
            services.worker = services.start("worker")
        services.is_done(batch)

    def test_everything_at_once_under_load(self, services: Stack) -> None:
        batch = services.submit_and_wait_for_some()
        begun = time.monotonic()
        for process in (services.api, services.worker):
            process.send_signal(signal.SIGTERM)
        for process in (services.api, services.worker):
            process.wait(60)
        assert time.monotonic() - begun < 30
        services.worker = services.start("worker")
        services.restart_api()
        services.is_done(batch)


def send(
    connection: http.client.HTTPConnection, key: str, method: str = "GET", path: str = "/v1/limits"
) -> None:
    """A GET, or a POST that the API answers with 200 as well."""
    named = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    if method == "POST":
        body = json.dumps({"cron": "0 3 * * *", "timezone": "UTC"})
        connection.request("POST", "/v1/schedules/preview", body, named)
    else:
        connection.request("GET", path, headers=named)


def ask(
    connection: http.client.HTTPConnection, key: str, *, path: str = "/v1/limits"
) -> tuple[int, str | None, bytes]:
    """Status, `connection` and body of the answer to a GET."""
    send(connection, key, path=path)
    answer = connection.getresponse()
    return answer.status, answer.getheader("connection"), answer.read()
