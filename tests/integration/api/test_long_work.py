"""Long requests are limited, by account and in total; short ones never wait for them."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests import factories
from tests.integration.conftest import Answer, Api, new_key
from xalen_batch import db
from xalen_batch.accounts import accounts
from xalen_batch.accounts.accounts import Owner
from xalen_batch.api import estimates, long_work
from xalen_batch.api.long_work import admitted
from xalen_batch.config import settings
from xalen_batch.endpoints.names import CHAT, RERANK
from xalen_batch.errors import TooManyRequests
from xalen_batch.schedules import collect as collecting
from xalen_batch.validation import apart

Configure = Callable[..., None]
NIGHTLY = {"name": "Nightly", "cron": "30 2 * * *", "endpoint": CHAT, "inbox": {}}
LARGE_BODY = [factories.chat_line("large", "x" * apart.SMALL_BYTES)]


def account(number: int) -> Owner:
    return Owner(UUID(int=number), False)


class TestAdmission:
    @pytest.fixture(autouse=True)
    def _few(self, configure: Configure) -> None:
        configure(long_requests=5, long_requests_per_account=2)

    def test_one_account_has_its_share_and_the_others_have_the_rest(self) -> None:
        with ExitStack() as at_work:
            for number in (1, 1, 2, 2):
                at_work.enter_context(admitted(account(number)))
            for number in (1, 2):
                with pytest.raises(TooManyRequests, match="at work on 2 requests of the account"):
                    at_work.enter_context(admitted(account(number)))
            at_work.enter_context(admitted(account(3)))
            with pytest.raises(
                TooManyRequests, match="at work on 5 requests that take long, the most"
            ) as refused:
                at_work.enter_context(admitted(account(4)))
        assert (refused.value.code, refused.value.retry_after) == (
            "too_many_long_requests",
            long_work.RETRY_AFTER,
        )
        assert long_work._at_work.total() == 0

    def test_an_accounts_two_modes_share_one_limit(self) -> None:
        with (
            admitted(account(1)),
            admitted(Owner(UUID(int=1), True)),
            pytest.raises(TooManyRequests),
            admitted(account(1)),
        ):
            pass

    def test_a_failure_gives_the_place_back(self) -> None:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError), admitted(account(1)):
                _ = 1 // 0


@pytest.fixture
def busy(api: Api) -> Iterator[None]:
    """An account that has its limit of long requests."""
    with db.transaction() as session:
        caller = accounts.authenticate(session, api.key)
    with ExitStack() as at_work:
        for _ in range(settings().long_requests_per_account):
            at_work.enter_context(admitted(caller))
        yield


def schedule(api: Api) -> str:
    answer = api.ask("POST", "/v1/schedules", NIGHTLY)
    assert answer.status == 200, answer.body
    return f"/v1/schedules/{answer.json['id']}"


@pytest.fixture
def nightly(api: Api) -> str:
    return schedule(api)


@pytest.fixture
def asked(api: Api, nightly: str) -> dict[str, Callable[[str], Answer]]:
    """A request to each route that takes long, and to some that do not, with a key."""
    file = api.upload(factories.jsonl([factories.chat_line("a")]))["id"]
    when = {"cron": "0 0 29 2 *", "timezone": "UTC"}
    past = {"from": "2026-11-01T00:00:00Z", "to": "2026-11-02T00:00:00Z"}
    return {
        "estimate": lambda key: api.ask(
            "POST", "/v1/batches/estimate", {"input_file_id": file}, key=key
        ),
        "create": lambda key: api.ask("POST", "/v1/schedules", NIGHTLY, key=key),
        "change what is read": lambda key: api.ask(
            "PATCH", nightly, {"input_file_id": file}, key=key
        ),
        "preview": lambda key: api.ask("POST", "/v1/schedules/preview?count=100", when, key=key),
        "preview of a schedule": lambda key: api.ask("GET", f"{nightly}/preview", key=key),
        "run": lambda key: api.ask("POST", f"{nightly}/run", {}, key=key),
        "backfill": lambda key: api.ask("POST", f"{nightly}/backfill", past, key=key),
        "large body": lambda key: api.ask("POST", f"{nightly}/requests", LARGE_BODY, key=key),
        "small body": lambda key: api.ask(
            "POST", f"{nightly}/requests", factories.chat_line("small"), key=key
        ),
        "change of a name": lambda key: api.ask("PATCH", nightly, {"name": "Other"}, key=key),
        "get": lambda key: api.ask("GET", nightly, key=key),
    }


SHORT = ("small body", "change of a name", "get")
LONG = (
    "estimate",
    "create",
    "change what is read",
    "preview",
    "preview of a schedule",
    "run",
    "backfill",
    "large body",
)


@pytest.mark.parametrize("name", LONG)
def test_a_long_request_too_many_of_an_account_is_refused_with_a_time_to_come_back(
    api: Api, asked: dict[str, Callable[[str], Answer]], busy: None, name: str
) -> None:
    answer = asked[name](api.key)
    assert (answer.status, answer.error["type"], answer.error["code"]) == (
        429,
        "rate_limit_error",
        "too_many_long_requests",
    )
    assert answer.headers["retry-after"] == "2"
    # A request of another account reaches the route, which refuses it.
    assert asked[name](new_key()).status != 429


@pytest.mark.parametrize("name", SHORT)
def test_short_requests_are_answered_beside_them(
    api: Api, asked: dict[str, Callable[[str], Answer]], busy: None, name: str
) -> None:
    assert asked[name](api.key).status == 200


def test_what_is_listed_here_is_every_long_route(asked: dict[str, Callable[[str], Answer]]) -> None:
    assert {*LONG, *SHORT} == set(asked)


def test_estimates_at_work_are_counted_until_they_are_answered(
    api: Api, monkeypatch: pytest.MonkeyPatch, configure: Configure
) -> None:
    configure(long_requests_per_account=1)
    file = api.upload(factories.jsonl([factories.chat_line("a")]))["id"]
    begun, released, made = threading.Event(), threading.Event(), estimates.estimate_file

    def slow(*args: Any, **asked: Any) -> Any:
        begun.set()
        assert released.wait(30)
        return made(*args, **asked)

    def ask() -> Answer:
        return api.ask("POST", "/v1/batches/estimate", {"input_file_id": file})

    monkeypatch.setattr(estimates, "estimate_file", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask)
        assert begun.wait(30)
        assert ask().status == 429
        released.set()
        assert first.result().status == 200
    assert ask().status == 200


def test_a_body_is_read_in_no_transaction_and_while_its_schedule_is_free(
    api: Api, nightly: str, stores: Any, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = apart.run, list[str]()

    def look(work: Callable[[], Any], *, size: int) -> Any:
        with psycopg.connect(database, autocommit=True) as other, other.transaction():
            other.execute("SELECT 1 FROM schedules FOR UPDATE NOWAIT")
            idle = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state"
                " = 'idle in transaction'"
            )
            seen.append(f"{other.execute(idle).fetchone()}")
        return run(work, size=size)

    monkeypatch.setattr(collecting.apart, "run", look)
    assert api.ask("POST", f"{nightly}/requests", LARGE_BODY).json["accepted"] == 1
    assert seen == ["(0,)"]


def test_requests_whose_schedule_has_another_endpoint_by_now_are_to_be_sent_again(
    api: Api, nightly: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = apart.run

    def meanwhile(work: Callable[[], Any], *, size: int) -> Any:
        assert api.ask("PATCH", nightly, {"endpoint": RERANK}).status == 200
        return run(work, size=size)

    with monkeypatch.context() as patch:
        patch.setattr(collecting.apart, "run", meanwhile)
        answer = api.ask("POST", f"{nightly}/requests", factories.chat_line("a"))
    assert (answer.status, "retry-after" in answer.headers) == (503, True)
    assert api.ask("GET", nightly).json["inbox"]["pending"] == 0
