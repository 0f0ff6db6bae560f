"""The filters of `GET /v1/batches` over the wire."""

from typing import Any
from urllib.parse import urlencode

import pytest

from tests import factories
from tests.integration.conftest import Api
from xalen_batch.endpoints.names import CHAT

LINES = factories.jsonl([factories.chat_line("a")])


def make(api: Api, **metadata: str) -> str:
    file = api.upload(LINES)
    batch = api.client.batches.create(
        input_file_id=file["id"], endpoint=CHAT, completion_window="24h", metadata=metadata
    )
    return batch.id


def listed(api: Api, **query: Any) -> list[str]:
    answer = api.ask("GET", f"/v1/batches?{urlencode(query)}")
    assert answer.status == 200, answer.body
    return [batch["id"] for batch in answer.json["data"]]


def test_filters_and_order_of_a_list(api: Api) -> None:
    first, second = make(api, team="search", note="a & b"), make(api, team="ads")
    created = api.ask("GET", f"/v1/batches/{first}").json["created_at"]
    assert listed(api) == [second, first]
    assert listed(api, order="asc") == [first, second]
    assert listed(api, order="asc", after=first) == [second]
    assert listed(api, status="validating", endpoint="/chat/completions") == [second, first]
    assert listed(api, status="completed") == []
    assert listed(api, model="mistral-small-3-1") == []
    assert listed(api, **{"metadata[team]": "search", "metadata[note]": "a & b"}) == [first]
    assert listed(api, created_after=created, created_before=created + 60) == [second, first]
    assert listed(api, created_before="2026-01-01T00:00:00Z") == []
    assert listed(api, created_after="2026-01-01", order="asc") == [first, second]
    assert listed(api, created_after=str(created), **{"metadata[team]": "ads"}) == [second]


def test_the_sdk_spells_metadata_so(api: Api) -> None:
    made = make(api, team="search")
    make(api)
    found = api.client.batches.list(extra_query={"metadata": {"team": "search"}})
    assert [batch.id for batch in found] == [made]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"status": "done"}, "status"),
        ({"order": "up"}, "order"),
        ({"endpoint": "/v1/nothing"}, "endpoint"),
        ({"model": "m" * 101}, "model"),
        ({"model": "a\0"}, "model"),
        ({"created_after": "yesterday"}, "created_after"),
        ({"created_after": "200", "created_before": "100"}, "created_before"),
        ({"created_after": "1e300"}, "created_after"),
        ({"metadata": "team=search"}, "metadata"),
        ({"metadata[team": "a"}, "metadata"),
        ({"metadata[]": "a"}, "metadata[]"),
        ({"metadata[a]": "b" * 513}, "metadata[a]"),
        ({"metadata[a]": "\0"}, "metadata[a]"),
        ({"schedule_id": "batch_1"}, "schedule_id"),
        ({f"metadata[{number}]": "a" for number in range(17)}, "metadata"),
    ],
)
def test_a_wrong_filter_is_named(api: Api, query: dict[str, str], param: str) -> None:
    answer = api.ask("GET", f"/v1/batches?{urlencode(query)}")
    assert (answer.status, answer.error["param"]) == (400, param), answer.body


def test_a_key_that_is_sent_twice_is_refused(api: Api) -> None:
    answer = api.ask("GET", "/v1/batches?metadata%5Ba%5D=1&metadata%5Ba%5D=2")
    assert (answer.status, answer.error["param"]) == (400, "metadata[a]")
