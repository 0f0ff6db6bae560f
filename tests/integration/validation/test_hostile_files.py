"""Every hostile file through the API, validation and the engine fails or runs as it should, and
affects no other batch.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select

from tests.hostile.files import CATALOG, FILES, HostileFile
from tests.integration.conftest import Api
from tests.waiting import wait_until
from xalen_batch import db
from xalen_batch.broker import Job
from xalen_batch.models import Batch, Invoice, Result
from xalen_batch.pipeline import finalize, recover, validate
from xalen_batch.states import TERMINAL
from xalen_batch.worker.engine import Engine

RUN = {Job.VALIDATE: validate.run, Job.FINALIZE: finalize.run}


@pytest.fixture
def work(api: Api, configure: Callable[..., None], tmp_path: Path) -> Iterator[Callable[[], None]]:
    """One poll for due work, as by a worker without a broker."""
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(CATALOG, "utf-8")
    configure(catalog=catalog, flush_interval=0.05)
    with ThreadPoolExecutor(40) as pool:
        engine = Engine(pool.submit)

        def look() -> None:
            for message in recover.due():
                if message.job is Job.EXECUTE:
                    engine.wake()
                elif message.job in RUN:
                    RUN[message.job](UUID(hex=message.id))

        yield look
        engine.stop()
        pool.shutdown(wait=True)
        engine.close()


def submitted(api: Api, case: HostileFile) -> str:
    file = api.upload(case.content)
    assert file["bytes"] == len(case.content)
    batch = api.ask(
        "POST",
        "/v1/batches",
        {"input_file_id": file["id"], "endpoint": case.endpoint, "completion_window": "24h"},
    )
    assert batch.status == 200, (case.name, batch.body)
    return str(batch.json["id"])


def outcome(api: Api, batch_id: str) -> tuple[list[tuple[str, int | None]], dict[str, int | str]]:
    """The errors of a batch and the outcome of each of its lines, as a user reads them."""
    batch: dict[str, Any] = api.ask("GET", f"/v1/batches/{batch_id}").json
    errors = [(error["code"], error["line"]) for error in (batch["errors"] or {"data": []})["data"]]
    assert batch["status"] == ("failed" if errors else "completed")
    found: dict[str, int | str] = {}
    for part in ("output", "errors"):
        for raw in api.ask("GET", f"/v1/batches/{batch_id}/{part}").body.splitlines():
            line = json.loads(raw)
            found[line["custom_id"]] = (
                line["response"]["status_code"] if line["response"] else line["error"]["code"]
            )
    assert batch["request_counts"]["total"] == len(found)
    return errors, found


def test_there_are_many_and_each_has_a_name() -> None:
    assert len({case.name for case in FILES}) == len(FILES) >= 60


def test_every_hostile_file_comes_to_what_it_should(api: Api, work: Callable[[], None]) -> None:
    batches = {case.name: submitted(api, case) for case in FILES}

    def all_have_ended() -> bool:
        work()
        with db.reading() as session:
            return (
                session.scalar(
                    select(func.count()).select_from(Batch).where(Batch.status.not_in(TERMINAL))
                )
                == 0
            )

    wait_until(all_have_ended, timeout=300)
    wrong = {}
    for case in FILES:
        errors, lines = outcome(api, batches[case.name])
        if (errors, lines) != (list(case.errors), dict(case.lines)):
            wrong[case.name] = (errors[:5], dict(list(lines.items())[:5]))
    assert wrong == {}
    with db.reading() as session:
        # A failed batch ran no line and cost nothing.
        succeeded = sum(status == 200 for case in FILES for status in case.lines.values())
        assert (
            session.scalar(
                select(func.count()).select_from(Result).where(Result.amount.is_not(None))
            )
            == succeeded
        )
        assert session.scalar(select(func.count()).select_from(Invoice)) == sum(
            not case.errors for case in FILES
        )
