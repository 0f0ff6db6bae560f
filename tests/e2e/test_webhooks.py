"""Webhooks end to end: the events of a running system, sent by its worker to a real receiver, and
accepted by the official SDKs unmodified.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from openai import OpenAI
from openai.types.webhooks import BatchCompletedWebhookEvent
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tests import factories
from tests.e2e import processes
from tests.e2e.processes import System
from tests.e2e.sdks import CLIENTS, install, node
from tests.receivers import Receiver, receiving
from tests.waiting import wait_until
from tests.webhooks import SECRET, an_event_of_each_type
from xalen import XALEN, AsyncXALEN
from xalen_batch.models.events import EventType
from xalen_batch.webhooks import signing

CHAT = "/v1/chat/completions"
PYTHON_3 = [sys.executable, CLIENTS / "unwrap.py"]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("webhooks")
    with processes.up(
        folder / "data",
        webhook_allow_http="true",
        webhook_allowed_networks="127.0.0.1/32",
        poll_interval=0.2,
        lease=4,
    ) as system:
        yield system


@pytest.fixture(scope="module")
def key(system: System) -> str:
    """A key that may change webhooks."""
    made = command(
        system, "keys", "create", "--account", "default", "--scopes", "submit,read,billing,admin"
    )
    return str(made["secret"])


@pytest.fixture
def client(system: System, key: str) -> XALEN:
    return XALEN(base_url=system.base_url, api_key=key)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def command(system: System, *arguments: str, key: str | None = None, code: int = 0) -> Any:
    """The JSON that a command prints with --json."""
    env = processes.environment(data_dir=system.data_dir)
    if key is not None:
        env |= {"XALEN_BASE_URL": system.base_url, "XALEN_API_KEY": key}
    ran = processes.run(*arguments, "--json", env=env)
    assert ran.returncode == code, ran.stderr
    return json.loads(ran.stdout)


def chats(client: XALEN) -> str:
    """Run a batch to its end; its id."""
    batch = client.batches.run(
        [{"messages": [{"role": "user", "content": "Say a."}], "max_tokens": 4}],
        endpoint=CHAT,
        model=factories.CHAT_MODEL,
    ).batch
    return batch.id


def test_a_batch_a_response_and_a_failed_batch_tell_their_ends_in_order(
    client: XALEN, receiver: Receiver
) -> None:
    hook = client.webhooks.endpoints.create(url=receiver.url)
    batch = chats(client)
    response = client.responses.create(
        model=factories.CHAT_MODEL, input="Say b.", background=True, max_output_tokens=16
    )
    wait_until(lambda: "response.incomplete" in receiver.types)
    bad = client.files.create(file=("bad.jsonl", b"{}\n"), purpose="batch")
    failed = client.batches.create(input_file_id=bad.id, endpoint=CHAT, completion_window="24h")
    wait_until(lambda: "batch.failed" in receiver.types)
    told = [
        (got.event["type"], got.event["data"]["id"])
        for got in receiver.got
        if got.event["type"] != "xalen.invoice.issued"
    ]
    assert told == [
        ("batch.completed", batch),
        ("response.incomplete", response.id),
        ("batch.failed", failed.id),
    ]
    assert receiver.types.count("xalen.invoice.issued") == 2
    for got in receiver.got:
        client.webhooks.unwrap(got.body, got.headers, secret=hook.secret)
        assert got.headers["webhook-id"] == got.event["id"]
    client.webhooks.endpoints.delete(hook.id)


def test_a_batchs_own_webhook_gets_its_end_alone(client: XALEN, receiver: Receiver) -> None:
    chats(client)
    results = client.batches.run(
        [{"messages": [{"role": "user", "content": "Say a."}], "max_tokens": 4}],
        endpoint=CHAT,
        model=factories.CHAT_MODEL,
        webhook={"url": receiver.url, "secret": SECRET},
    )
    wait_until(lambda: bool(receiver.got))
    chats(client)
    assert [got.event["data"]["id"] for got in receiver.got] == [results.batch.id]
    client.webhooks.unwrap(receiver.got[0].body, receiver.got[0].headers, secret=SECRET)


# Every type, as it arrives: the bytes and headers that a worker sent for an event of it.
@pytest.fixture(scope="module")
def deliveries() -> list[dict[str, Any]]:
    """A delivery of every type, signed with a secret that rotates and the one before."""
    return an_event_of_each_type(signing.new_secret(), SECRET)


def python_2() -> list[Any]:
    return [install(CLIENTS / "openai-2"), CLIENTS / "unwrap.py"]


SDKS = {
    "python 2.": python_2,
    "python 3.": lambda: PYTHON_3,
    "node 7.": lambda: node("unwrap.mjs"),
}


@pytest.mark.parametrize("sdk", SDKS)
def test_an_sdk_accepts_every_type_and_refuses_a_forged_one(
    deliveries: list[dict[str, Any]], sdk: str
) -> None:
    ran = subprocess.run(
        SDKS[sdk](),
        cwd=CLIENTS,
        input=json.dumps({"secret": SECRET, "deliveries": deliveries}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    answer = json.loads(ran.stdout)
    assert answer["sdk"].startswith(sdk)
    assert [one["type"] for one in answer["found"]] == [type.value for type in EventType]
    for one, sent in zip(answer["found"], deliveries, strict=True):
        event = json.loads(sent["body"])
        assert (one["id"], one["object"], one["data"]) == (
            event["id"],
            "event",
            event["data"]["id"],
        )
        assert one["forged_is_refused"]
        if one["class"] is not None and not one["type"].startswith("xalen."):
            words = one["type"].replace(".", "_").title().replace("_", "")
            assert one["class"] == f"{words}WebhookEvent"


def test_the_package_of_standard_webhooks_accepts_every_type_and_refuses_a_forged_one(
    deliveries: list[dict[str, Any]],
) -> None:
    verifier = Webhook(SECRET)
    for delivery in deliveries:
        event = verifier.verify(delivery["body"], delivery["headers"])
        assert event == json.loads(delivery["body"])
        with pytest.raises(WebhookVerificationError):
            verifier.verify(delivery["body"] + " ", delivery["headers"])


def test_the_command_line_manages_webhooks(system: System, key: str, receiver: Receiver) -> None:
    def webhooks(*arguments: str, code: int = 0) -> Any:
        return command(system, "webhooks", *arguments, key=key, code=code)

    made = webhooks("create", receiver.url, "--events", "batch.failed", "--description", "mine")
    id = made["id"]
    assert made["secret"].startswith("whsec_")
    assert [hook["id"] for hook in webhooks("list")["data"]] == [id]
    assert webhooks("show", id) == {name: made[name] for name in made if name != "secret"}
    tested = webhooks("test", id)
    assert (tested["state"], tested["status_code"]) == ("delivered", 200)
    Webhook(made["secret"]).verify(receiver.got[0].body, receiver.got[0].headers)
    rotated = webhooks("rotate", id, "--overlap", "1h")
    assert rotated["secret"] != made["secret"]
    assert rotated["previous_secret_expires_at"] is not None
    assert webhooks("update", id, "--events", "all", "--enabled", "off")["status"] == "disabled"
    assert webhooks("update", id, "--enabled", "on")["status"] == "enabled"
    listed = webhooks("deliveries", id, "--state", "delivered")["data"]
    assert [one["id"] for one in listed] == [tested["id"]]
    webhooks("redeliver", id, tested["id"])
    wait_until(lambda: len(receiver.got) == 2)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    span = ("--from", "2026-01-01", "--to", f"{tomorrow:%Y-%m-%d}", "--state", "all")
    assert webhooks("replay", id, *span)["events"] >= 1
    assert webhooks("delete", id)["deleted"] is True
    assert webhooks("list")["data"] == []


def test_a_test_that_fails_says_why(system: System, key: str) -> None:
    url = f"http://127.0.0.1:{processes.free_port()}/"
    made = command(system, "webhooks", "create", url, key=key)
    failed = command(system, "webhooks", "test", made["id"], key=key, code=1)
    assert failed["error"].startswith("No answer: ")
    command(system, "webhooks", "delete", made["id"], key=key)


def test_listen_prints_events_as_they_come(system: System, key: str, client: XALEN) -> None:
    chats(client)
    env = processes.environment(data_dir=system.data_dir) | {
        "XALEN_BASE_URL": system.base_url,
        "XALEN_API_KEY": key,
        "PYTHONUNBUFFERED": "1",
    }
    listening = subprocess.Popen(
        [processes.COMMAND, "webhooks", "listen", "--events", "batch.completed", "--json"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=processes.hear_ctrl_c,
    )
    try:
        assert listening.stdout
        assert listening.stderr
        assert "Listening" in listening.stderr.readline()
        batch = chats(client)
        event = json.loads(listening.stdout.readline())
    finally:
        listening.send_signal(signal.SIGINT)
    assert (event["type"], event["data"]) == ("batch.completed", {"id": batch})
    assert listening.wait(30) == 130


def test_a_webhook_of_openais_client_is_told_of_a_batch(
    system: System, key: str, client: XALEN, receiver: Receiver
) -> None:
    theirs = OpenAI(base_url=system.base_url, api_key=key)
    hook = theirs.webhooks.create(name="mine", url=receiver.url, event_types=["batch.completed"])
    assert theirs.webhooks.test(hook.id, event_type="batch.failed").status_code == 200
    batch = chats(client)
    wait_until(lambda: len(receiver.got) == 2)
    events = [
        theirs.webhooks.unwrap(got.body, got.headers, secret=hook.signing_secret)
        for got in receiver.got
    ]
    assert [event.type for event in events] == ["batch.failed", "batch.completed"]
    assert isinstance(events[1], BatchCompletedWebhookEvent)
    assert events[1].data.id == batch
    # The two views of the `xalen` client show the same webhook.
    [named] = client.webhooks.list()
    [described] = client.webhooks.endpoints.list()
    assert (named.id, named.name) == (described.id, described.description) == (hook.id, "mine")
    assert client.webhooks.delete(hook.id).deleted


def test_the_client_manages_webhooks(client: XALEN, receiver: Receiver) -> None:
    endpoints = client.webhooks.endpoints
    hook = endpoints.create(url=receiver.url, events=["batch.completed"], description="mine")
    assert endpoints.retrieve(hook.id).url == receiver.url
    assert endpoints.update(hook.id, events=None).events is None
    assert [found.id for found in endpoints.list()] == [hook.id]
    sent = endpoints.test(hook.id)
    wait_until(lambda: bool(receiver.got))
    wait_until(lambda: [one.state for one in endpoints.list_deliveries(hook.id)] == ["delivered"])
    assert endpoints.redeliver(hook.id, sent.id).state == "pending"
    wait_until(lambda: len(receiver.got) == 2)
    rotated = endpoints.rotate(hook.id, overlap_seconds=60)
    assert rotated.secret != hook.secret
    now = datetime.now(UTC)
    # The test event at least.
    assert endpoints.replay(hook.id, from_=now - timedelta(days=1), to=now, state="all").events
    assert endpoints.delete(hook.id).deleted


def test_the_asynchronous_client_manages_webhooks(
    system: System, key: str, receiver: Receiver
) -> None:
    async def manage() -> list[str]:
        async with AsyncXALEN(base_url=system.base_url, api_key=key) as client:
            endpoints = client.webhooks.endpoints
            hook = await endpoints.create(url=receiver.url)
            await endpoints.update(hook.id, enabled=True)
            sent = await endpoints.test(hook.id)
            await asyncio.to_thread(wait_until, lambda: bool(receiver.got))
            states = [one.id async for one in endpoints.list_deliveries(hook.id)]
            assert (await endpoints.retrieve(hook.id)).id == hook.id
            await endpoints.redeliver(hook.id, sent.id)
            await endpoints.rotate(hook.id)
            now = datetime.now(UTC)
            await endpoints.replay(hook.id, from_=now - timedelta(hours=1), to=now)
            assert [found.id async for found in endpoints.list()] == [hook.id]
            await endpoints.delete(hook.id)
            return [states[0], sent.id]

    first, sent = asyncio.run(manage())
    assert first == sent


def test_a_worker_that_is_killed_during_a_delivery_loses_no_event(
    system: System, client: XALEN, receiver: Receiver
) -> None:
    hook = client.webhooks.endpoints.create(url=receiver.url, events=["batch.completed"])
    answer = receiver.answer
    killed: list[int] = []

    def kill(request: Any, got: Any) -> None:
        if not killed:
            [file] = (system.data_dir / "run").glob("worker*.pid")
            killed.append(int(file.read_text()))
            os.kill(killed[0], signal.SIGKILL)
        answer(request, got)

    receiver.answer = kill
    batch = chats(client)
    # The lease of the killed worker runs out first.
    wait_until(
        lambda: (
            [one.state for one in client.webhooks.endpoints.list_deliveries(hook.id)]
            == ["delivered"]
        )
    )
    assert {got.event["data"]["id"] for got in receiver.got} == {batch}
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 1
    client.webhooks.endpoints.delete(hook.id)
