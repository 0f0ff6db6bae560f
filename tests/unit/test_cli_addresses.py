"""Wrong addresses of the API: the client's message, and the address that it proposes."""

import socket
import ssl
import struct
import threading
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner, Result

from tests.unit.fake_api import Api, serving
from xalen_batch.cli import addresses
from xalen_batch.cli.main import app

UNKNOWN = (
    404,
    {},
    (
        b'{"error": {"message": "Unknown request URL: GET /limits.", "param": null, "code":'
        b' "unknown_url"}}'
    ),
)
NO_OBJECT = (
    404,
    {},
    b'{"error": {"message": "No such Batch object: limits", "param": null, "code": null}}',
)
FOREIGN = (404, {}, b"<html>Not found</html>")
LIMITS = (200, {}, b'{"object": "limits"}')


@pytest.fixture
def api() -> Iterator[Api]:
    with serving() as server:
        yield server


@pytest.fixture
def tls() -> Iterator[str]:
    """The authority of a server that speaks TLS alone: it answers a handshake with a TLS record,
    and resets anything else.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    if connection.recv(4096)[:1] == b"\x16":
                        connection.sendall(b"\x15\x03\x03\x00\x02\x02\x28")
                    else:
                        connection.setsockopt(
                            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                        )

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def limits(base_url: str) -> Result:
    return CliRunner().invoke(
        app, ["limits", "--base-url", base_url, "--api-key", "xln_test_secret"]
    )


def test_https_against_an_http_server_names_the_http_address(api: Api) -> None:
    result = limits(api.base_url.replace("http:", "https:"))
    assert result.exit_code == 1
    place = api.base_url.removeprefix("http://").removesuffix("/v1")
    assert (
        result.stderr
        == f"Error: {place} speaks http, not https. Use {api.base_url} as the address.\n"
    )


def test_http_against_a_tls_server_names_the_https_address(tls: str) -> None:
    result = limits(f"http://{tls}/v1")
    assert (result.exit_code, result.stderr) == (
        1,
        f"Error: {tls} speaks https, not http. Use https://{tls}/v1 as the address.\n",
    )


def test_a_server_that_resets_http_and_tls_alike_is_taken_for_neither() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f"127.0.0.1:{listener.getsockname()[1]}"
    assert not addresses.is_tls_server(f"http://{place}/v1")
    assert addresses.wrong_scheme(f"http://{place}/v1", ConnectionResetError()) is None


def test_a_certificate_that_is_not_accepted_is_named_with_the_remedy() -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    told = addresses.wrong_scheme("https://batch.example/v1", error)
    assert told is not None
    assert "certificate of batch.example is not accepted: self-signed certificate" in told
    assert "SSL_CERT_FILE" in told


@pytest.mark.parametrize("path", ["", "/", "//v1", "/v1//", "//v1//"])
def test_slashes_do_not_matter(path: str, api: Api) -> None:
    api.answers = [LIMITS]
    assert limits(api.base_url.removesuffix("/v1") + path).exit_code == 0
    assert api.requests[0][1] == "/v1/limits"


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/api", UNKNOWN),
        ("/v2", UNKNOWN),
        ("/docs", FOREIGN),
        ("/v1/batches", NO_OBJECT),
        ("/v1/batches", UNKNOWN),
    ],
)
def test_a_path_that_is_not_the_apis_names_the_address_that_is(
    path: str, answer: tuple[int, dict[str, str], bytes], api: Api
) -> None:
    api.answers = [answer]
    result = limits(api.base_url.removesuffix("/v1") + path)
    assert result.exit_code == 1
    assert f"The address of an API ends in /v1: try {api.base_url} [HTTP 404]" in result.stderr


@pytest.mark.parametrize("answer", [UNKNOWN, NO_OBJECT])
def test_a_404_behind_the_right_address_is_told_as_it_is(
    answer: tuple[int, dict[str, str], bytes], api: Api
) -> None:
    api.answers = [answer]
    assert "try http" not in limits(api.base_url).stderr


@pytest.mark.parametrize(
    ("given", "proposed"),
    [("127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1"), ("ftp://x/v1", "http://127.0.0.1:8080/v1")],
)
def test_an_address_without_a_scheme_is_a_usage_error_that_adds_it(
    given: str, proposed: str
) -> None:
    result = limits(given)
    assert result.exit_code == 2
    assert f"'{given}'. It looks like {proposed}\n" in result.stderr


@pytest.mark.parametrize(
    ("is_tls", "words"),
    [(True, "speaks https, not http. Use https://"), (False, "Is the address right?")],
)
def test_a_400_of_a_proxy_that_wanted_tls_names_the_https_address(
    is_tls: bool, words: str, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    # nginx answers plain HTTP on its TLS port so; any other 400 in HTML is just not this API's.
    monkeypatch.setattr(addresses, "is_tls_server", lambda _: is_tls)
    api.answers = [(400, {}, b"<html>The plain HTTP request was sent to HTTPS port</html>")]
    assert words in limits(api.base_url).stderr
