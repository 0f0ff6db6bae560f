"""Limits from a client's side: figures, refusals, and the progress of a client that obeys them."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
import redis

from tests import factories
from tests.integration.conftest import Api, Json
from xalen_batch import db, disk
from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Owner, authenticate
from xalen_batch.accounts.quotas import Quota
from xalen_batch.ratelimit import account
from xalen_batch.standalone import stores

LINES = factories.jsonl([factories.chat_line("a")])
Configure = Callable[..., None]


@pytest.fixture(autouse=True)
def forgotten() -> None:
    """Clear the state that the API's process has from the test before."""
    account._limits.clear()
    account._buckets_of.cache_clear()


def create(api: Api, file_id: str, **headers: str) -> tuple[int, Json]:
    body = {
        "input_file_id": file_id,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    answer = api.ask("POST", "/v1/batches", body, headers=headers)
    return answer.status, answer.json if answer.status == 200 else answer.error | answer.headers


def limits(api: Api) -> Json:
    found: Json = api.ask("GET", "/v1/limits").json
    return found


def owner(api: Api) -> Owner:
    with db.transaction() as session:
        return authenticate(session, api.key)


class TestWhatIsTold:
    def test_used_limit_and_free_of_each_quota(self, api: Api, configure: Configure) -> None:
        configure(
            quota_open_batches=3,
            quota_enqueued_tokens="none",
            quota_storage_bytes=1_000,
            quota_requests_per_second=200,
        )
        file = api.upload(LINES)
        assert create(api, file["id"])[0] == 200
        found = limits(api)
        used = found.pop("requests_per_second")
        assert used == {"used": 200 - used["free"], "limit": 200, "free": used["free"]}
        assert used["used"] >= 1
        used = found.pop("changes_per_minute")
        # An upload and a batch, less the tokens refilled since; reading the limits takes none.
        assert used == {"used": 1_000 - used["free"], "limit": 1_000, "free": used["free"]}
        assert 0 <= used["used"] <= 2
        assert found == {
            "object": "limits",
            "livemode": False,
            "open_batches": {"used": 1, "limit": 3, "free": 2},
            "enqueued_lines": {"used": 0, "limit": 5_000_000, "free": 5_000_000},
            "enqueued_tokens": {"used": 0, "limit": None, "free": None},
            "files": {"used": 1, "limit": 100_000, "free": 99_999},
            "storage_bytes": {"used": len(LINES), "limit": 1_000, "free": 1_000 - len(LINES)},
            "pending_uploads": {"used": 0, "limit": 100, "free": 100},
            "schedules": {"used": 0, "limit": 1_000, "free": 1_000},
            "waiting_runs": {"used": 0, "limit": 1_000, "free": 1_000},
            "inbox_requests": {"used": 0, "limit": 1_000_000, "free": 1_000_000},
            "api_keys": {"used": 1, "limit": 100, "free": 99},
            "webhooks": {"used": 0, "limit": 20, "free": 20},
            "idempotency_keys": {"used": 0, "limit": 1_000_000, "free": 1_000_000},
        }

    def test_what_is_over_a_limit_that_was_lowered_is_not_free_by_less_than_nothing(
        self, api: Api
    ) -> None:
        api.upload(LINES)
        with db.transaction() as session:
            quotas.change(
                session, owner(api), {Quota.STORAGE_BYTES: 1, Quota.REQUESTS_PER_SECOND: None}
            )
        account._limits.clear()
        found = limits(api)
        assert found["storage_bytes"] == {"used": len(LINES), "limit": 1, "free": 0}
        assert found["requests_per_second"] == {"used": 0, "limit": None, "free": None}

    def test_every_answer_says_how_many_requests_are_left(
        self, api: Api, configure: Configure
    ) -> None:
        configure(quota_requests_per_second=50)
        refused = api.ask("POST", "/v1/batches", {})
        for answer in (api.ask("GET", "/v1/models"), api.ask("GET", "/v1/files/file-0"), refused):
            assert answer.headers["x-ratelimit-limit-requests"] == "50"
            assert 0 <= int(answer.headers["x-ratelimit-remaining-requests"]) < 50
            assert 0 < int(answer.headers["x-ratelimit-reset-requests"].removesuffix("ms")) <= 1_000
        assert "x-ratelimit-limit-requests" not in api.ask("GET", "/v1/models", key=None).headers
        configure(quota_requests_per_second="none")
        account._limits.clear()
        assert "x-ratelimit-limit-requests" not in api.ask("GET", "/v1/models").headers


class TestRefusals:
    def test_a_full_quota_is_a_429_in_openais_shape_and_leaves_the_idempotency_key_free(
        self, api: Api, configure: Configure
    ) -> None:
        configure(quota_open_batches=1)
        file = api.upload(LINES)
        status, batch = create(api, file["id"])
        assert status == 200
        status, error = create(api, file["id"], **{"idempotency-key": "one"})
        assert (status, error["type"], error["code"], error["param"]) == (
            429,
            "rate_limit_error",
            "open_batches_limit",
            None,
        )
        assert (error["retry-after"], error["retry-after-ms"]) == ("5", "5000")
        assert "GET /v1/limits" in error["message"]
        api.ask("POST", f"/v1/batches/{batch['id']}/cancel")
        configure(quota_open_batches=2)
        assert create(api, file["id"], **{"idempotency-key": "one"})[0] == 200

    @pytest.mark.parametrize("size", [2_000, 3_000_000])
    def test_an_upload_that_there_is_no_room_for_is_refused_and_leaves_nothing(
        self, api: Api, configure: Configure, size: int
    ) -> None:
        configure(quota_storage_bytes=1_000)
        before = stored()
        with pytest.raises(openai.RateLimitError) as refusal:
            api.client.files.create(file=b"x" * size, purpose="batch")
        assert refusal.value.code == "storage_bytes_limit"
        assert stored() == before
        assert limits(api)["storage_bytes"]["used"] == 0

    def test_a_client_sends_what_alone_is_over_a_limit_once(
        self, api: Api, configure: Configure
    ) -> None:
        configure(quota_storage_bytes=1_000)
        client, answers = api.client.with_options(max_retries=2), list[int]()
        client._client.event_hooks["response"].append(
            lambda answer: answers.append(answer.status_code)
        )
        with pytest.raises(openai.RateLimitError) as refusal:
            client.files.create(file=b"x" * 2_000, purpose="batch")
        assert answers == [429]
        assert refusal.value.response.headers["x-should-retry"] == "false"
        assert "retry-after" not in refusal.value.response.headers

    def test_what_fits_when_something_else_is_gone_may_be_sent_again(
        self, api: Api, configure: Configure
    ) -> None:
        configure(quota_storage_bytes=2_500)
        api.upload(b"x" * 1_000)
        with pytest.raises(openai.RateLimitError) as refusal:
            api.client.files.create(file=b"x" * 2_000, purpose="batch")
        assert refusal.value.response.headers["retry-after"] == "5"
        assert "x-should-retry" not in refusal.value.response.headers

    def test_requests_for_an_inbox_are_refused_while_files_have_no_room(
        self, api: Api, configure: Configure
    ) -> None:
        with db.transaction() as session:
            schedule = factories.schedule(session, authenticate(session, api.key))
        path = f"/v1/schedules/sched_{schedule.id.hex}/requests"
        configure(quota_storage_bytes=10)
        assert (
            api.ask("POST", path, factories.chat_line("a")).error["code"] == "storage_bytes_limit"
        )
        configure(quota_storage_bytes=1_000)
        assert api.ask("POST", path, factories.chat_line("a")).json["accepted"] == 1


def stored() -> int:
    from xalen_batch import storage

    return sum(path.is_file() for path in storage.folder().rglob("*"))


class TestRequestsPerSecond:
    def test_a_burst_of_the_official_client_ends_with_every_call_done(
        self, api: Api, configure: Configure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A busy machine is no Redis that is away.
        monkeypatch.setattr(account, "REDIS_TIMEOUT", 10.0)
        monkeypatch.setattr(account, "_buckets_of", cache(account.AccountBuckets))
        configure(quota_requests_per_second=2)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{api.port}/v1", api_key=api.key)
        refused = []
        client._client.event_hooks["response"].append(
            lambda answer: refused.append(answer) if answer.status_code == 429 else None
        )
        with ThreadPoolExecutor(16) as pool:
            started = time.monotonic()
            found = list(pool.map(lambda _: client.models.list().data, range(16)))
            elapsed = time.monotonic() - started
        assert all(len(models) == 3 for models in found)
        assert refused
        # The requests of one second at once, the others at the rate.
        assert elapsed >= (16 - 2) / 2 * 0.95

    @pytest.fixture
    def standing_clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stop the refill of buckets, so that the number of granted requests does not depend on the
        speed of the test.
        """
        alone = account.AccountBuckets(None)
        monkeypatch.setattr(account, "_buckets_of", lambda url: alone)
        monkeypatch.setattr(account, "time", SimpleNamespace(monotonic=lambda: 1_000.0))

    def test_one_too_many_is_told_when_to_come_back(
        self, api: Api, configure: Configure, standing_clock: None
    ) -> None:
        configure(quota_requests_per_second=1)
        answers = [api.ask("GET", "/v1/models") for _ in range(account.SMALLEST_BUCKET + 1)]
        assert [answer.status for answer in answers] == [200] * account.SMALLEST_BUCKET + [429]
        refused = answers[-1]
        assert refused.error["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after-ms"]) <= 1_000 * int(refused.headers["retry-after"])
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"

    def test_accounts_do_not_take_from_each_other(
        self, api: Api, configure: Configure, standing_clock: None
    ) -> None:
        configure(quota_requests_per_second=1)
        with db.transaction() as session:
            other = factories.key(session)
        assert [api.ask("GET", "/v1/models").status for _ in range(account.SMALLEST_BUCKET + 1)][
            -1
        ] == 429
        assert api.ask("GET", "/v1/models", key=other).status == 200


@pytest.fixture
def server(tmp_path: Path, configure: Configure) -> Iterator[stores.Valkey]:
    server = stores.Valkey(tmp_path / "valkey", tmp_path / "valkey.log")
    configure(redis_url=server.start(), quota_requests_per_second=100)
    yield server
    server.stop()


class TestWithoutRedis:
    def test_requests_pass_while_redis_is_gone_and_it_is_asked_again_when_it_is_back(
        self, api: Api, server: stores.Valkey, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A busy machine is no Redis that is away.
        monkeypatch.setattr(account, "REDIS_TIMEOUT", 10.0)
        monkeypatch.setattr(account, "_buckets_of", cache(account.AccountBuckets))
        assert api.ask("GET", "/v1/models").status == 200
        mine = account._buckets_of(server.url)
        server.stop()
        assert api.ask("GET", "/v1/models").status == 200
        assert mine._retry_at > 0
        server.start()
        # A second later.
        mine._retry_at = time.monotonic()
        assert api.ask("GET", "/v1/models").status == 200
        assert mine._retry_at == 0

    @pytest.mark.timing
    def test_a_redis_that_hangs_holds_one_request_up_and_for_a_moment_only(
        self, api: Api, server: stores.Valkey
    ) -> None:
        assert api.ask("GET", "/v1/models").status == 200
        mine = account._buckets_of(server.url)
        waits = []
        with redis.Redis.from_url(server.url) as client:
            client.execute_command("CLIENT", "PAUSE", 60_000, "ALL")
        for _ in range(50):
            started = time.monotonic()
            assert mine.draw("a", 100).limit == 100
            waits.append(time.monotonic() - started)
        assert mine._retry_at > 0
        # The first has waited, and one in each second after it.
        assert sorted(waits)[len(waits) // 2] < account.REDIS_TIMEOUT
        assert api.ask("GET", "/v1/models").status == 200


class TestDisk:
    @pytest.fixture(autouse=True)
    def looked_anew(self, configure: Configure) -> Iterator[None]:
        disk._short.cache_clear()
        yield
        disk._short.cache_clear()

    def test_while_the_disk_is_short_nothing_new_is_taken_and_what_is_there_is_served(
        self, api: Api, configure: Configure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = api.upload(LINES)
        before = stored()
        monkeypatch.setattr(disk, "free", lambda folder: disk.GiB - 1)
        disk._short.cache_clear()
        with pytest.raises(openai.InternalServerError) as refusal:
            api.client.files.create(file=LINES, purpose="batch")
        assert (refusal.value.status_code, refusal.value.code) == (507, "storage_full")
        assert "The disk of the files has 1.00 GiB left" in refusal.value.message
        assert create(api, file["id"])[1]["code"] == "storage_full"
        assert stored() == before
        assert api.ask("GET", f"/v1/files/{file['id']}/content").body == LINES
        ready = api.ask("GET", "/readyz", key=None)
        assert (ready.status, ready.json["status"]) == (200, "degraded")
        assert ready.json["checks"]["disk"]["error"].startswith(
            "The disk of the files has 1.00 GiB left"
        )
        monkeypatch.setattr(disk, "free", lambda folder: disk.GiB)
        disk._short.cache_clear()
        assert create(api, file["id"])[0] == 200
        assert api.ask("GET", "/readyz", key=None).json["status"] == "ok"

    def test_an_upload_on_its_way_is_given_up_when_the_disk_gets_short(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = stored()
        looks = iter(range(20))
        monkeypatch.setattr(disk, "LOOK_EVERY", 1e-9)
        monkeypatch.setattr(
            disk, "free", lambda folder: disk.GiB if next(looks, None) is not None else disk.GiB - 1
        )
        with pytest.raises(openai.InternalServerError) as refusal:
            api.client.files.create(file=bytes(8 << 20), purpose="batch")
        assert (refusal.value.status_code, refusal.value.code) == (507, "storage_full")
        assert next(looks, None) is None, "the disk was short from the start"
        assert stored() == before
        assert api.ask("GET", "/v1/files").json["data"] == []
