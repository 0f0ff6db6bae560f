"""An API that is killed or stopped at any moment: no half file or batch, and whoever asks again gets what they asked for once."""

import http.client
import json
import signal
import socket
import subprocess
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
        restart(services)


def restart(stack: Stack) -> None:
    stack.api = stack.start("api")
    stack.wait_until_ready()


def inputs(stack: Stack) -> set[Path]:
    return set((stack.folder / "data" / "files" / "input").glob("*"))


def half_an_upload(stack: Stack, port: int) -> socket.socket:
    """A connection over which half of a file has come."""
    kind, body = multipart(("purpose", None, b"batch"), ("file", "a.jsonl", bytes(24 * MiB)))
    sending = socket.create_connection(("127.0.0.1", port), timeout=60)
    named = f"authorization: Bearer {stack.key}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
    before = inputs(stack)
    sending.sendall(f"POST /v1/files HTTP/1.1\r\nhost: x\r\n{named}\r\n".encode() + body[: 12 * MiB])
    processes.wait_until(lambda: bool(inputs(stack) - before))
    return sending


class TestKilled:
    def test_in_mid_upload(self, services: Stack) -> None:
        client = services.client()
        known = {file.id for file in client.files.list()}
        before = inputs(services)
        with half_an_upload(services, services.port):
            services.kill(services.api)
        restart(services)
        assert {file.id for file in client.files.list()} == known
        # What is left is no object: the sweep removes it when it is old.
        left = inputs(services) - before
        assert left
        assert all("#" in path.name for path in left)
        for path in left:
            path.unlink()

    def test_while_batches_are_created(self, services: Stack) -> None:
        file = services.upload(1)
        batch = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
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
        restart(services)
        again = {key: create(services.client(), key) for key in keys}
        assert None not in again.values()
        assert all(again[key] == id for key, id in answered.items() if id is not None)
        assert len(set(again.values())) == len(keys)
        made = [found.id for found in services.client().batches.list(limit=100) if found.input_file_id == file]
        assert sorted(made) == sorted(again.values())  # type: ignore[type-var]

    def test_in_mid_download(self, services: Stack) -> None:
        client = services.client()
        content = bytes(range(256)) * 4 * 16 * 1024
        file = client.files.create(file=("a.bin", content), purpose="user_data")
        connection = http.client.HTTPConnection("127.0.0.1", services.port, timeout=60)
        connection.request("GET", f"/v1/files/{file.id}/content", headers={"authorization": f"Bearer {services.key}"})
        answer = connection.getresponse()
        assert answer.read(MiB) == content[:MiB]
        services.kill(services.api)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            answer.read()
        connection.close()
        restart(services)
        assert client.files.content(file.id).content == content


class TestStopped:
    def test_a_rolling_restart_under_load(self, services: Stack) -> None:
        batch = services.submit_and_wait_for_some()
        answers: list[Answer] = []
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                try:
                    answers.append(services.ask("GET", f"/v1/batches/{batch.id}"))
                except (ConnectionError, OSError):
                    # Nobody listens, or closed the door on who was waiting to be let in.
                    time.sleep(0.05)

        with ThreadPoolExecutor(4) as clients:
            for _ in range(4):
                clients.submit(ask)
            try:
                processes.wait_until(lambda: len(answers) > 10)
                begun = time.monotonic()
                services.api.send_signal(signal.SIGTERM)
                services.api.wait(60)
                stopped_in = time.monotonic() - begun
                restart(services)
                count = len(answers)
                processes.wait_until(lambda: len(answers) > count + 10)
            finally:
                over.set()
        assert stopped_in < 30
        assert all(answer.status == 200 or answer.is_come_back_later for answer in answers)
        services.is_done(batch)

    def test_an_upload_that_outlives_the_grace_is_told_to_come_back(self, services: Stack) -> None:
        port = processes.free_port()
        api = services.start("api", "--port", str(port), shutdown_grace=1)
        processes.wait_until(lambda: processes.answers(f"http://127.0.0.1:{port}/livez"), timeout=processes.START_TIMEOUT, process=api)
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
        stop(services.worker)
        # A lease that nobody would wait out.
        holder = services.start("worker", lease=600)
        try:
            batch = services.submit_and_wait_for_some()
            assert stop(holder) < 30
            with services.direct() as session:
                held = "SELECT count(*) FILTER (WHERE state = 'running'), count(*) FILTER (WHERE state = 'pending') FROM tasks WHERE batch_id = %s"
                running, pending = session.execute(held, [batch.id.removeprefix("batch_")]).fetchone() or (None, None)
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
        restart(services)
        services.is_done(batch)


def stop(process: subprocess.Popen[bytes]) -> float:
    """Seconds that it took to end by itself."""
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    return time.monotonic() - begun
