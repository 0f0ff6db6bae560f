"""`limits` on the command line."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.unit.cli.fake_api import Api, serving
from xalen_batch.accounts.quotas import Quota
from xalen_batch.cli import client
from xalen_batch.cli.limits import NAMES
from xalen_batch.cli.main import app

FOUND: dict[str, Any] = {
    "object": "limits",
    "livemode": False,
    "open_batches": {"used": 3, "limit": 1000, "free": 997},
    "enqueued_lines": {"used": 120_000, "limit": 5_000_000, "free": 4_880_000},
    "enqueued_tokens": {"used": 9_000_000, "limit": None, "free": None},
    "storage_bytes": {"used": 5, "limit": 10, "free": 5},
    "requests_per_second": {"used": 1, "limit": 200, "free": 199},
}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(client, "PAUSES", ())
    with serving() as server:
        yield server


def limits(api: Api, *options: str) -> Result:
    return CliRunner().invoke(
        app, ["limits", *options, "--base-url", api.base_url, "--api-key", "xln_test_secret"]
    )


def test_a_table_for_people_with_none_where_there_is_no_limit(api: Api) -> None:
    api.answers = [(200, {}, json.dumps(FOUND).encode())]
    rows = [line.rsplit(maxsplit=3) for line in limits(api).stdout.splitlines()]
    assert rows[0] == ["limit of", "used", "limit", "free"]
    assert ["open batches", "3", "1,000", "997"] in rows
    assert ["input tokens in them", "9,000,000", "none", "none"] in rows
    assert api.requests[0][:2] == ("GET", "/v1/limits")


def test_every_quota_has_words() -> None:
    assert set(NAMES) == set(Quota)


def test_json_as_it_came(api: Api) -> None:
    api.answers = [(200, {}, json.dumps(FOUND).encode())]
    assert json.loads(limits(api, "--json").stdout) == FOUND


def test_a_key_that_may_not_is_exit_4(api: Api) -> None:
    api.answers = [
        (
            403,
            {},
            (
                b'{"error": {"message": "no", "type": "permission_error", "param": null, "code":'
                b" null}}"
            ),
        )
    ]
    result = limits(api)
    assert (result.exit_code, result.stdout) == (4, "")
