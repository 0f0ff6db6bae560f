"""Repeated requests without a valid key are told to wait; a valid key is always answered."""

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from tests.integration.conftest import Api
from tests.waiting import PATIENCE
from xalen_batch.accounts import secrets
from xalen_batch.api import app
from xalen_batch.ratelimit.account import UNKNOWN_PROCESSES

MOST = 5


@pytest.fixture(autouse=True)
def _few(configure: Callable[..., None]) -> None:
    configure(failed_auth_per_minute=MOST)


def failures(
    api: Api, number: int, key: str | None = "sk-wrong", path: str = "/v1/files"
) -> list[int]:
    return [api.ask("GET", path, key=key).status for _ in range(number)]


def test_after_so_many_failures_an_address_is_429_with_a_pause(api: Api) -> None:
    assert failures(api, MOST) == [401] * MOST
    answer = api.ask("GET", "/v1/files", key="sk-wrong")
    assert (answer.status, answer.error["type"], answer.error["code"]) == (
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
    )
    assert 1 <= int(answer.headers["retry-after"]) <= 60 / MOST
    assert "www-authenticate" not in answer.headers


def test_a_valid_key_passes_from_the_same_address(api: Api) -> None:
    failures(api, MOST + 1)
    assert failures(api, 2, key="") == [200, 200]
    assert failures(api, 1) == [429]


def test_valid_keys_and_missing_scopes_use_up_nothing(api: Api) -> None:
    assert failures(api, 2 * MOST, key="") == [200] * 2 * MOST
    assert failures(api, 2 * MOST, key="", path="/v1/api_keys") == [403] * 2 * MOST
    assert failures(api, 1) == [401]


@pytest.mark.parametrize(
    "key", [None, "", "xln_test_short", secrets.new(False)], ids=["none", "empty", "cut", "unknown"]
)
def test_every_way_to_fail_counts(api: Api, key: str | None) -> None:
    headers = {"authorization": f"Bearer {key}"} if key == "" else None
    found = [
        api.ask("GET", "/v1/files", key=key or None, headers=headers).status
        for _ in range(MOST + 1)
    ]
    assert found == [401] * MOST + [429]


def test_every_route_counts_and_counts_once(api: Api) -> None:
    def status(method: str, path: str, body: Any = None) -> int:
        return api.ask(
            method, path, body, headers={"content-type": "application/json"}, key="sk-wrong"
        ).status

    found = [
        status("GET", "/v1/models"),
        status("POST", "/v1/files", b""),
        status("POST", "/v1/batches", b"{"),
        status("GET", "/v1/batches?limit=0"),
        status("PATCH", "/v1/schedules/sched_1", b"["),
    ]
    assert found == [401] * MOST
    assert status("POST", "/v1/batches", b"{") == 429


def test_without_redis_a_process_goes_by_its_share(
    api: Api, configure: Callable[..., None]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configure(
        redis_url=f"redis://127.0.0.1:{port}/0", failed_auth_per_minute=MOST * UNKNOWN_PROCESSES
    )
    assert failures(api, MOST + 1) == [401] * MOST + [429]
    assert failures(api, 1, key="") == [200]


@pytest.fixture
def proxied(stores: object, database: str, valkey: object) -> Iterator[Callable[..., int]]:
    """Starts the API as a server does, with the given trusted proxies; the result maps a value of
    X-Forwarded-For to the status of a failed request.
    """
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(trusted: str) -> Callable[[str], int]:
        listening = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            app.create_app(),
            log_config=None,
            access_log=False,
            **app.forwarding(tuple(filter(None, trusted.split(",")))),
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        running.append((server, thread))

        def fail(forwarded_for: str) -> int:
            connection = http.client.HTTPConnection(
                "127.0.0.1", listening.getsockname()[1], timeout=PATIENCE
            )
            connection.request("GET", "/v1/files", headers={"x-forwarded-for": forwarded_for})
            status = connection.getresponse().status
            connection.close()
            return status

        return fail

    yield start  # type: ignore[misc]
    for server, thread in running:
        server.should_exit = True
        thread.join(timeout=PATIENCE)


class TestProxies:
    def test_what_a_client_says_of_itself_is_not_believed(
        self, proxied: Callable[..., Callable[[str], int]]
    ) -> None:
        fail = proxied("")
        assert [fail(f"192.0.2.{number}") for number in range(MOST + 1)] == [401] * MOST + [429]

    @pytest.mark.parametrize("trusted", ["127.0.0.1", "127.0.0.0/8,10.0.0.0/24"])
    def test_a_proxy_that_is_named_tells_the_clients_address(
        self, proxied: Callable[..., Callable[[str], int]], trusted: str
    ) -> None:
        fail = proxied(trusted)
        assert [fail("192.0.2.1") for _ in range(MOST + 1)] == [401] * MOST + [429]
        assert fail("192.0.2.2") == 401
        # The proxy appends the address that it sees; addresses before it came from the client.
        assert fail("192.0.2.99, 192.0.2.1") == 429

    def test_a_network_of_ipv6_is_one_client(
        self, proxied: Callable[..., Callable[[str], int]]
    ) -> None:
        fail = proxied("127.0.0.1")
        assert [fail(f"2001:db8::{number}") for number in range(MOST + 1)] == [401] * MOST + [429]
        assert fail("2001:db8:0:1::1") == 401
        assert fail("::ffff:192.0.2.7") == 401
        assert [fail("192.0.2.7") for _ in range(MOST)] == [401] * (MOST - 1) + [429]

    def test_words_that_are_no_address_are_one_client_each(
        self, proxied: Callable[..., Callable[[str], int]]
    ) -> None:
        fail = proxied("127.0.0.1")
        assert [fail("x" * 4000 + str(number)) for number in range(MOST + 1)] == [401] * MOST + [
            429
        ]
