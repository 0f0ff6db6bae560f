"""The HTTP client of webhooks, and receivers that are slow, huge, dead or rude."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests import tls
from tests.receivers import Got, Receiver, receiving, status
from xalen_batch import __version__
from xalen_batch.webhooks import receiver as clients
from xalen_batch.webhooks.receiver import Answer, NoAnswer, Receivers

Configure = Callable[..., None]
BODY = b'{"id":"evt_1"}'


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def inside(configure: Configure) -> None:
    configure(webhook_allow_http=True, webhook_allowed_networks="127.0.0.1/32")


def post(url: str, **headers: str) -> Answer:
    return Receivers().post(url, headers, BODY)


def test_it_posts_the_very_bytes_with_their_headers(receiver: Receiver) -> None:
    answer = post(receiver.url, **{"webhook-id": "evt_1"})
    assert answer == Answer(200, b"ok", None)
    [got] = receiver.got
    assert (got.path, got.body) == ("/hook", BODY)
    assert got.headers == {
        "content-type": "application/json",
        "user-agent": f"xalen-batch/{__version__}",
        "webhook-id": "evt_1",
        "accept": "*/*",
        "content-length": str(len(BODY)),
        "host": f"127.0.0.1:{receiver.port}",
    }


def test_a_name_is_sent_as_host_and_its_checked_address_is_connected_to(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A name that changes its address between the check and the connection: resolved once only.
    asked = []

    def resolve(host: str, port: int, **_: object) -> list[object]:
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return [(0, 0, 0, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert post(f"http://hooks.example.com:{receiver.port}/a").status == 200
    assert asked == ["hooks.example.com"]
    assert receiver.got[0].headers["host"] == f"hooks.example.com:{receiver.port}"


def test_each_attempt_resolves_anew_and_a_name_that_moved_inside_is_not_connected_to(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    leads_to = ["127.0.0.1"]
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, port, **_: [(0, 0, 0, "", (leads_to[0], port))]
    )
    kept, url = Receivers(), f"http://hooks.example.com:{receiver.port}/a"
    assert kept.post(url, {}, BODY).status == 200
    leads_to[0] = "127.0.0.2"
    with pytest.raises(NoAnswer, match=r"leads to 127\.0\.0\.2, which is not an address of the"):
        kept.post(url, {}, BODY)
    assert len(receiver.got) == 1


def test_attempts_take_turns_among_the_addresses(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, configure: Configure
) -> None:
    configure(webhook_allow_http=True, webhook_allowed_networks="127.0.0.0/8")
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, port, **_: [(0, 0, 0, "", (a, port)) for a in ("127.0.0.9", "127.0.0.1")],
    )
    url = f"http://hooks.example.com:{receiver.port}/"
    with pytest.raises(NoAnswer, match="No answer"):
        Receivers().post(url, {}, BODY, attempt=0)
    assert Receivers().post(url, {}, BODY, attempt=1).status == 200


def test_tls_names_the_host_and_checks_the_certificate_of_its_name(
    tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, authority = tls.server_context(tmp_path)
    named: list[str | None] = []
    context.sni_callback = lambda _, name, __: named.append(name)
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, port, **_: [(0, 0, 0, "", ("127.0.0.1", port))]
    )
    with receiving(context) as receiver:
        url = f"https://localhost:{receiver.port}/"
        with pytest.raises(NoAnswer, match=r"No answer: .*certificate"):
            post(url)
        configure(webhook_ca_file=authority)
        assert post(url).status == 200
        # The address is right, and the certificate is of another name.
        with pytest.raises(NoAnswer, match=r"No answer: .*certificate"):
            post(f"https://hooks.example.com:{receiver.port}/")
    assert set(named) == {"localhost", "hooks.example.com"}
    assert len(receiver.got) == 1


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_answer_and_is_not_followed(receiver: Receiver, code: int) -> None:
    receiver.answer = status(code, location=f"http://127.0.0.1:{receiver.port}/inside")
    assert post(receiver.url).status == code
    assert [got.path for got in receiver.got] == ["/hook"]


def test_no_proxy_of_the_environment_is_used(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert post(receiver.url).status == 200


def test_retry_after_is_read_and_the_beginning_of_the_body_is_kept(receiver: Receiver) -> None:
    receiver.answer = status(503, b"x" * 5_000, retry_after="120")
    assert post(receiver.url) == Answer(503, b"x" * 2_048, "120")


def test_a_huge_answer_is_read_to_its_cap_and_its_status_counts(receiver: Receiver) -> None:
    sent = []

    def answer(request: BaseHTTPRequestHandler, _: Got) -> None:
        request.send_response(200)
        request.send_header("content-length", str(10**12))
        request.end_headers()
        while True:
            request.wfile.write(b"x" * 65_536)
            sent.append(65_536)

    receiver.answer = answer
    assert post(receiver.url) == Answer(200, b"x" * 2_048, None)
    assert sum(sent) < 50 * 2**20


def test_a_compressed_answer_is_not_inflated(receiver: Receiver) -> None:
    receiver.answer = status(200, b"\x1f\x8b" + bytes(30), content_encoding="gzip")
    assert post(receiver.url).body == b"\x1f\x8b" + bytes(30)
    assert "accept-encoding" not in receiver.got[0].headers


def test_an_answer_that_breaks_off_has_its_status(receiver: Receiver) -> None:
    def answer(request: BaseHTTPRequestHandler, _: Got) -> None:
        request.send_response(200)
        request.send_header("content-length", "100")
        request.end_headers()
        request.wfile.write(b"half")
        request.close_connection = True

    receiver.answer = answer
    assert post(receiver.url) == Answer(200, b"half", None)


def slowly(*parts: bytes) -> Callable[[BaseHTTPRequestHandler, Got], None]:
    """Send parts, then a byte at a time without an end."""

    def answer(request: BaseHTTPRequestHandler, _: Got) -> None:
        for part in parts:
            request.wfile.write(part)
        while True:
            request.wfile.write(b"x")
            time.sleep(0.05)

    return answer


@pytest.mark.parametrize("parts", [[], [b"HTTP/1.1 200 OK\r\nx: "]], ids=["status line", "header"])
def test_a_head_that_drips_ends_with_the_time_of_an_attempt(
    receiver: Receiver, parts: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "TOTAL", 1.0)
    receiver.answer = slowly(*parts)
    with pytest.raises(NoAnswer):
        post(receiver.url)


def test_a_body_that_drips_ends_with_the_time_of_an_attempt_and_its_status_counts(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "TOTAL", 1.0)
    receiver.answer = slowly(b"HTTP/1.1 200 OK\r\n\r\n")
    answer = post(receiver.url)
    assert (answer.status, set(answer.body)) == (200, set(b"x"))


def test_headers_without_an_end_are_refused(receiver: Receiver) -> None:
    sent = []

    def answer(request: BaseHTTPRequestHandler, _: Got) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            request.wfile.write(b"a: " + b"b" * 60_000 + b"\r\n")
            sent.append(60_000)

    receiver.answer = answer
    with pytest.raises(NoAnswer):
        post(receiver.url)
    assert sum(sent) < 50 * 2**20


@pytest.mark.parametrize("junk", [b"", b"SSH-2.0-OpenSSH_9.9\r\n", b"\x15\x03\x01\0\x02\x02\x46"])
def test_what_is_not_http_is_no_answer(receiver: Receiver, junk: bytes) -> None:
    def answer(request: BaseHTTPRequestHandler, _: Got) -> None:
        request.wfile.write(junk)
        request.close_connection = True

    receiver.answer = answer
    with pytest.raises(NoAnswer, match=r"No answer: .+\."):
        post(receiver.url)


def test_a_dead_receiver_is_no_connection() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(NoAnswer, match=r"No answer: .+\.") as raised:
        post(f"http://127.0.0.1:{port}/secret-path")
    assert "secret-path" not in str(raised.value)


def test_a_receiver_that_accepts_nothing_ends_with_the_time_of_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clients, "CONNECT", 0.3)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        with pytest.raises(NoAnswer, match="No connection within"):
            post(f"http://127.0.0.1:{port}/")
        for one in waiting:
            one.close()


def test_a_receiver_that_accepts_and_never_answers_did_not_fail_to_connect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clients, "TOTAL", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(NoAnswer, match=r"No whole answer within 1 second"):
            post(f"http://127.0.0.1:{silent.getsockname()[1]}/")


def test_a_client_is_kept_for_the_next_delivery_and_a_bounded_number_of_them(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    build = clients._made
    monkeypatch.setattr(clients, "_made", lambda *args: made.append(args) or build(*args))
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, port, **_: [(0, 0, 0, "", ("127.0.0.1", port))]
    )
    kept = Receivers()
    for name in ("a", "a", "b", "a"):
        assert kept.post(f"http://{name}.example:{receiver.port}/", {}, BODY).status == 200
    assert len(made) == 2
    for number in range(clients.KEPT_CLIENTS):
        kept.post(f"http://n{number}.example:{receiver.port}/", {}, BODY)
    assert len(kept._clients) == clients.KEPT_CLIENTS


def test_any_number_of_threads_may_post(receiver: Receiver) -> None:
    kept, answers = Receivers(), []
    threads = [
        threading.Thread(target=lambda: answers.append(kept.post(receiver.url, {}, BODY).status))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 8
