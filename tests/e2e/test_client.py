"""The client of client/ against the whole system: batches in one call, and every resource."""

import asyncio
import itertools
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch
from openai.types.chat import ChatCompletion

from tests import ROOT
from tests.e2e import processes
from tests.e2e.processes import System
from tests.fault_proxy import FaultProxy
from tests.waiting import wait_until
from xalen import XALEN, AsyncXALEN, BatchFailed
from xalen.types import RerankResponse

CHAT, RERANK = "mistral-small-3-1", "bge-reranker-v2"
NOW = datetime.now(UTC)


def chats(count: int) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"Say {n}."}], "max_tokens": 4}
        for n in range(count)
    ]


@pytest.fixture
def client(running_system: System) -> XALEN:
    return XALEN(base_url=running_system.base_url, api_key=running_system.test_key)


def test_chats_run_in_one_call(client: XALEN) -> None:
    results = client.batches.run(
        chats(25), endpoint="/v1/chat/completions", model=CHAT, metadata={"by": "client"}
    )
    assert results.batch.status == "completed"
    assert results.batch.metadata == {"by": "client"}
    found = list(results)
    assert [result.custom_id for result in found] == [f"request-{n}" for n in range(1, 26)]
    for number, result in enumerate(found):
        assert isinstance(result.response, ChatCompletion)
        assert result.response.choices[0].message.content
        assert result.request is not None
        assert result.request["body"]["messages"][0]["content"] == f"Say {number}."
    assert results.invoice is not None
    assert results.invoice.batch_id == results.batch.id
    assert Decimal(results.invoice.total) > 0
    assert client.invoices.retrieve(results.batch.id) == results.invoice


def test_a_file_of_rankings_runs_in_one_call(client: XALEN) -> None:
    results = client.batches.run(ROOT / "examples/help-centre-rerank.jsonl", endpoint="/v1/rerank")
    count = 0
    for result in results:
        assert isinstance(result.response, RerankResponse)
        scores = [ranked.relevance_score for ranked in result.response.results]
        assert scores == sorted(scores, reverse=True)
        assert result.request is not None
        assert result.request["custom_id"] == result.custom_id
        count += 1
    assert count == results.batch.request_counts.total == 300  # type: ignore[union-attr]


def test_answers_of_every_endpoint_are_objects_of_openai(client: XALEN) -> None:
    responses = client.batches.run(
        [{"input": "Say one."}, {"input": "Say two."}], endpoint="/v1/responses", model=CHAT
    )
    assert all(result.response and result.response.output_text for result in responses)
    completions = client.batches.run([{"prompt": "One"}], endpoint="/v1/completions", model=CHAT)
    assert all(result.response and result.response.choices[0].text for result in completions)
    embeddings = client.batches.run(
        [{"input": ["one", "two"]}], endpoint="/v1/embeddings", model="bge-m3"
    )
    (embedded,) = [result.response for result in embeddings]
    assert embedded is not None
    assert [len(found.embedding) > 0 for found in embedded.data] == [True, True]
    # The spelling without the version means the same.
    lines = [{"custom_id": "a", "url": "/chat/completions", "body": chats(1)[0]}]
    (chat,) = client.batches.run(lines, model=CHAT)
    assert isinstance(chat.response, ChatCompletion)


def test_an_asynchronous_client_runs_both(running_system: System) -> None:
    async def main() -> None:
        async with AsyncXALEN(
            base_url=running_system.base_url, api_key=running_system.test_key
        ) as client:
            ranking = {"query": "parcel", "documents": ["A card.", "A parcel."], "top_n": 1}
            chat, ranked = await asyncio.gather(
                client.batches.run(chats(3), endpoint="/v1/chat/completions", model=CHAT),
                client.batches.run([ranking], endpoint="/v1/rerank", model=RERANK),
            )
            answers = [result.response async for result in chat]
            assert [type(answer) for answer in answers] == [ChatCompletion] * 3
            (best,) = [result.response async for result in ranked]
            assert best is not None
            assert best.results[0].index == 1
            assert chat.invoice == await client.invoices.retrieve(chat.batch.id)
            again = await client.batches.wait(chat.batch.id)
            assert [result.response async for result in again] == answers
            estimate = await client.estimates.create(input_file_id=chat.batch.input_file_id)
            assert (estimate.valid, estimate.lines) == (True, 3)
            assert (await client.limits.retrieve()).open_batches.limit
            schedule = await client.schedules.create(
                name="async", cron="@daily", endpoint="/v1/rerank", inbox={}
            )
            assert schedule.id in [found.id async for found in client.schedules.list(limit=1)]
            assert len((await client.schedules.preview(schedule.id, count=3)).fires) == 3
            sent = [
                {
                    "custom_id": "a",
                    "method": "POST",
                    "url": "/v1/rerank",
                    "body": {"model": RERANK, **ranking},
                }
            ]
            assert (await client.schedules.add_requests(schedule.id, sent)).pending == 1
            deleted = await client.schedules.delete(schedule.id, discard_requests=True)
            assert deleted.discarded_requests == 1
            month = f"{NOW:%Y-%m}"
            lines = [line.invoice_id async for line in client.statements.lines(month)]
            assert chat.invoice is not None
            assert chat.invoice.id in lines

    asyncio.run(main())


def test_the_same_key_finds_the_batch_of_the_last_start(client: XALEN) -> None:
    key = f"night-{time.time_ns()}"
    first = client.batches.submit(chats(2), model=CHAT, idempotency_key=key)
    results = client.batches.run(chats(2), model=CHAT, idempotency_key=key)
    assert results.batch.id == first.id
    with pytest.raises(openai.BadRequestError, match="used for another request"):
        client.batches.submit(chats(3), model=CHAT, idempotency_key=key)


def test_invalid_lines_fail_the_batch_or_are_skipped(client: XALEN) -> None:
    bad: dict[str, Any] = {"custom_id": "bad", "body": {"messages": []}}
    good = {"custom_id": "good", "body": chats(1)[0]}
    with pytest.raises(BatchFailed, match="failed validation; line 1: "):
        client.batches.run([bad, good], model=CHAT)
    found = list(client.batches.run([bad, good, good], model=CHAT, on_invalid="skip"))
    assert [(result.custom_id, result.error is None) for result in found] == [
        ("bad", False),
        ("good", True),
        ("line-3", False),
    ]
    assert all(result.request is not None for result in found)


def test_schedules_live_and_die(client: XALEN) -> None:
    lines = client.files.create(
        file=(ROOT / "examples/help-centre-rerank.jsonl").open("rb"), purpose="batch"
    )
    schedule = client.schedules.create(
        name="Rankings",
        cron="30 2 * * *",
        timezone="Europe/Berlin",
        endpoint="/v1/rerank",
        input_file_id=lines.id,
        execution_window={"start": "00:00", "end": "23:59"},
        starts_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    assert schedule.description == "At 02:30 every day"
    assert schedule.execution_window is not None
    assert schedule.execution_window.timezone == "Europe/Berlin"
    other = client.schedules.create(name="x", cron="@daily", endpoint="/v1/rerank", inbox={})
    # Pages of one.
    listed = itertools.islice(client.schedules.list(limit=1, status="active"), 100)
    assert {schedule.id, other.id} <= {found.id for found in listed}
    previewed = client.schedules.preview(schedule.id, count=2)
    assert [fire.local[11:16] for fire in previewed.fires] == ["02:30", "02:30"]
    drawn = client.schedules.preview_cron(cron="30 2 * * *", timezone="Europe/Berlin", count=2)
    assert drawn.fires == previewed.fires
    changed = client.schedules.update(schedule.id, cron="0 3 * * *", overlap="allow")
    assert (changed.cron, changed.overlap) == ("0 3 * * *", "allow")
    assert client.schedules.update(schedule.id, overlap=None).overlap == "skip"
    assert client.schedules.pause(schedule.id, note="moving").pause_note == "moving"
    assert client.schedules.resume(schedule.id).status == "active"
    run = client.schedules.run(schedule.id, as_of="2026-11-20T02:30")
    assert run.batch_id is not None
    assert client.batches.wait(run.batch_id).batch.status == "completed"
    assert [found.id for found in client.schedules.list_runs(schedule.id)] == [run.id]
    missed = client.schedules.backfill(
        schedule.id, from_=datetime(2026, 11, 1, tzinfo=UTC), to="2026-11-03"
    )
    assert [run.trigger for run in missed] == ["backfill", "backfill"]
    assert client.schedules.retrieve(schedule.id).last_run is not None
    for made in (schedule, other):
        assert client.schedules.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.schedules.retrieve(other.id)


def test_a_month_has_a_statement(client: XALEN) -> None:
    results = client.batches.run(chats(1), model=CHAT)
    statement = client.statements.retrieve(f"{NOW:%Y-%m}")
    assert (statement.status, statement.payable) == ("draft", False)
    assert list(client.statements.lines(f"{NOW:%Y-%m}"))[-1].kind == "rounding"
    page = client.statements.retrieve(f"{NOW:%Y-%m}", limit=1)
    assert len(page.lines) == 1
    assert results.invoice is not None
    assert results.invoice.id in [line.invoice_id for line in statement.lines]


def test_an_estimate_and_the_limits(client: XALEN) -> None:
    file = client.files.create(
        file=(ROOT / "examples/support-tickets.jsonl").open("rb"), purpose="batch"
    )
    estimate = client.estimates.create(input_file_id=file.id, endpoint="/v1/chat/completions")
    assert (estimate.valid, estimate.lines, estimate.models[0].model) == (True, 300, CHAT)
    assert 0 < Decimal(estimate.expected_cost) <= Decimal(estimate.max_cost)
    limits = client.limits.retrieve()
    assert not limits.livemode
    assert limits.files.used > 0


@pytest.mark.parametrize("page", ["client/README.md", "docs/client.md"])
def test_the_python_of_the_pages_runs(running_system: System, page: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    ran = subprocess.run(
        [sys.executable, "-c", code.replace("xln_test_…", running_system.test_key)],
        cwd=ROOT,
        env=processes.environment(data_dir=running_system.data_dir),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "0.000" in ran.stdout.splitlines()[-1]


def test_the_file_of_up_is_found(running_system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XALEN_DATA_DIR", str(running_system.data_dir))
    assert not XALEN().limits.retrieve().livemode
    assert XALEN(live=True).limits.retrieve().livemode


def test_a_bad_network_costs_time_alone(running_system: System) -> None:
    key = running_system.test_key
    with FaultProxy(("127.0.0.1", running_system.port)) as proxy:
        client = XALEN(base_url=f"http://127.0.0.1:{proxy.port}", api_key=key)
        seen: list[str] = []

        def break_off(batch: Batch) -> None:
            seen.append(batch.status)
            proxy.break_connections()

        results = client.batches.run(
            ROOT / "examples/help-centre-rerank.jsonl", progress=break_off, poll_interval=0.05
        )
        assert seen[-1] == "completed"

        def is_sealed() -> bool:
            file_id = results.batch.output_file_id
            assert file_id is not None
            with client.files.with_streaming_response.content(file_id) as answer:
                return answer.headers["accept-ranges"] == "bytes"

        wait_until(is_sealed)
        whole = list(results)
        # From now on no connection carries a whole file.
        proxy.cut_after(100_000)
        resumed = list(client.batches.wait(results.batch.id))
        assert resumed == whole
        assert len(whole) == 300


WAITING = """
import asyncio, sys
from xalen import XALEN, AsyncXALEN
requests = [{"messages": [{"role": "user", "content": "x"}]}]
options = {
    "model": "mistral-small-3-1",
    "execution_window": {"start": sys.argv[1], "end": sys.argv[2]},
    "progress": True,
}
"""
WAITS = {
    "sync": "XALEN().batches.run(requests, **options)",
    "async": "asyncio.run(AsyncXALEN().batches.run(requests, **options))",
}


@pytest.mark.parametrize("kind", WAITS)
def test_ctrl_c_says_how_to_wait_again(running_system: System, tmp_path: Path, kind: str) -> None:
    log = tmp_path / "log"
    hour = datetime.now(UTC).hour
    # It opens in some hours.
    window = [f"{(hour + 4) % 24:02}:00", f"{(hour + 5) % 24:02}:00"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", WAITING + WAITS[kind], *window],
            env=processes.environment(data_dir=running_system.data_dir),
            stderr=out,
            preexec_fn=processes.hear_ctrl_c,
        )
    wait_until(lambda: b"in_progress" in log.read_bytes(), process=process, log=log)
    process.send_signal(signal.SIGINT)
    process.wait(30)
    told = log.read_text("utf-8").splitlines()
    batch_id = told[0].split()[0]
    assert "KeyboardInterrupt" in told
    note = f"The batch goes on: client.batches.wait('{batch_id}') waits for it again."
    assert note in told
    assert any("Waiting: " in line for line in told)
    client = XALEN(base_url=running_system.base_url, api_key=running_system.test_key)
    assert client.batches.cancel(batch_id).status in ("cancelling", "cancelled")
    results = client.batches.wait(batch_id)
    assert [result.error and result.error.code for result in results] == ["batch_cancelled"]
