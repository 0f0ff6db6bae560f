"""The clients are those of `openai`, with this API's address and key and nothing of OpenAI's."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from functools import cached_property

import openai
import pytest

from tests.unit.client.stub_api import KEY, Api, jsonl
from xalen import XALEN, AsyncXALEN, _client

FOREIGN = {
    "OPENAI_API_KEY": "sk-foreign",
    "OPENAI_ADMIN_KEY": "sk-admin-foreign",
    "OPENAI_BASE_URL": "https://foreign.example.com/v1",
    "OPENAI_ORG_ID": "org-foreign",
    "OPENAI_PROJECT_ID": "proj-foreign",
    "OPENAI_CUSTOM_HEADERS": "Authorization: Bearer sk-foreign\nX-Foreign: foreign",
}


def test_no_variable_of_openai_reaches_the_server(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in FOREIGN.items():
        monkeypatch.setenv(name, value)
    api.others["GET /models"] = api.others["GET /organization/admin_api_keys"] = {"data": []}
    with XALEN(api_key=KEY, base_url=api.base_url, default_headers={"X-Own": "own"}) as client:
        list(client.models.list())
        list(client.with_options(timeout=5).models.list())
        # Would send the other service's admin key.
        with pytest.raises(TypeError, match="Could not resolve authentication"):
            client.admin.organization.admin_api_keys.list()
    asked = api.sent("GET", "/models")
    assert len(asked) == 2
    for headers in asked:
        assert headers["authorization"] == f"Bearer {KEY}"
        assert headers["x-own"] == "own"
        assert not [name for name, value in headers.items() if "foreign" in name + value]


def test_an_asynchronous_client_is_as_careful(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FOREIGN.items():
        monkeypatch.setenv(name, value)
    api.others["GET /models"] = {"data": []}

    async def main() -> None:
        async with AsyncXALEN(api_key=KEY, base_url=api.base_url) as client:
            assert [model async for model in client.with_options(timeout=5).models.list()] == []

    asyncio.run(main())
    (headers,) = api.sent("GET", "/models")
    assert headers["authorization"] == f"Bearer {KEY}"
    assert not [name for name, value in headers.items() if "foreign" in name + value]


def test_a_copy_keeps_the_kind_the_key_and_the_address(api: Api) -> None:
    client = XALEN(api_key=KEY, base_url=api.base_url, max_retries=7)
    copy = client.with_options(timeout=3)
    assert isinstance(copy, XALEN)
    assert (copy.api_key, copy.base_url, copy.max_retries) == (KEY, client.base_url, 7)
    assert copy.schedules is not client.schedules
    assert copy.with_options(api_key="xln_test_b").api_key == "xln_test_b"
    asynchronous = AsyncXALEN(api_key=KEY, base_url=api.base_url).with_options(timeout=3)
    assert isinstance(asynchronous, AsyncXALEN)


def test_plain_http_goes_through_no_proxy(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    api.others["GET /models"] = {"data": []}
    client = XALEN(api_key=KEY, base_url=api.base_url, max_retries=0)
    assert client.timeout == openai.DEFAULT_TIMEOUT
    assert list(client.models.list()) == []

    async def main() -> None:
        client = AsyncXALEN(api_key=KEY, base_url=api.base_url, max_retries=0)
        assert [model async for model in client.models.list()] == []

    asyncio.run(main())


def test_a_key_may_be_a_function(api: Api) -> None:
    api.others["GET /models"] = {"data": []}
    client = XALEN(api_key=lambda: "xln_test_made", base_url=api.base_url)
    list(client.with_options(timeout=3).models.list())
    assert api.sent("GET", "/models")[0]["authorization"] == "Bearer xln_test_made"


@pytest.mark.parametrize("kind", [XALEN, AsyncXALEN])
def test_resources_are_made_once(kind: type[XALEN]) -> None:
    client = kind(api_key=KEY, base_url="http://127.0.0.1:1")
    names = [name for name, value in vars(kind).items() if isinstance(value, cached_property)]
    assert len(names) >= 7
    for name in names:
        assert getattr(client, name) is getattr(client, name)


@pytest.mark.parametrize("name", ["_custom_headers", "_idempotency_header"])
def test_openai_still_has_the_private_attributes_that_are_set(name: str) -> None:
    """If one is gone: `_forget_openai` in client/xalen/_client.py has to be written anew."""
    for client in (
        openai.OpenAI(api_key="sk-1", base_url="http://127.0.0.1:1"),
        openai.AsyncOpenAI(api_key="sk-1", base_url="http://127.0.0.1:1"),
    ):
        assert hasattr(client, name)


def test_a_repeated_request_carries_the_key_of_the_first(api: Api) -> None:
    client = XALEN(api_key=KEY, base_url=api.base_url)
    api.outages = [0]
    client.batches.retrieve("batch_1")
    client.batches.cancel("batch_1")
    client.batches.cancel("batch_1")
    assert len(api.sent("GET", "/batches/batch_1")) == 2
    assert _client.IDEMPOTENCY_HEADER.lower() not in api.sent("GET", "/batches/batch_1")[0]
    first, second = (
        headers["idempotency-key"] for headers in api.sent("POST", "/batches/batch_1/cancel")
    )
    assert first != second


def test_webhooks_are_those_of_openai() -> None:
    key = base64.b64encode(b"k" * 32).decode()
    client = XALEN(api_key=KEY, base_url="http://127.0.0.1:1", webhook_secret=f"whsec_{key}")
    event = {"id": "evt_1", "object": "event", "type": "batch.completed", "data": {"id": "batch_1"}}
    body, now = json.dumps(event), str(int(time.time()))
    signed = hmac.digest(b"k" * 32, f"evt_1.{now}.{body}".encode(), hashlib.sha256)
    headers = {
        "webhook-id": "evt_1",
        "webhook-timestamp": now,
        "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
    }
    assert client.webhooks.unwrap(body, headers).type == "batch.completed"
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body + " ", headers)


def test_an_upload_is_repeated_with_its_key_and_all_of_its_bytes(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = jsonl({"a": 1}) * 1000
    answers = [503, 200]
    handle = api.RequestHandlerClass._json

    def refusing(handler: object, status: int, value: object) -> None:
        handle(handler, answers.pop(0) if answers else status, value)

    monkeypatch.setattr(api.RequestHandlerClass, "_json", refusing)
    client = XALEN(api_key=KEY, base_url=api.base_url)
    client.files.create(file=("a.jsonl", content), purpose="batch")
    first, second = api.sent("POST", "/files")
    assert first["idempotency-key"] == second["idempotency-key"]
    assert api.contents["input"] == content
