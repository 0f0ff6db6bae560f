"""The service of batches: the terms that are frozen at creation, and a batch's progress."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.orm import Session

from tests import factories
from xalen_batch import ids
from xalen_batch.accounts.accounts import Caller
from xalen_batch.batches import batches
from xalen_batch.batches.batches import Progress
from xalen_batch.broker import Job, Message
from xalen_batch.errors import InvalidRequest, NotFound
from xalen_batch.models import Batch, Task


@pytest.fixture
def caller(session: Session) -> Caller:
    return factories.caller(session)


def make(session: Session, caller: Caller, **options: Any) -> Batch:
    file = factories.input_file(session, caller, b"{}")
    given = {"endpoint": "/v1/chat/completions", "completion_window": "24h", **options}
    return batches.create(session, caller, input_file_id=ids.render("file", file.id), **given)


def test_price_and_discount_are_frozen_and_validation_is_named_next(
    session: Session, caller: Caller
) -> None:
    batch = make(
        session, caller, completion_window="2d", metadata={"a": "b"}, output_expires_after=3600
    )
    assert batch.price_snapshot["mistral-small-3-1"] == {"input": "0.02", "output": "0.04"}
    assert (batch.discount_rate, batch.status, batch.meta) == (
        Decimal("0.5"),
        "validating",
        {"a": "b"},
    )
    assert batch.expires_at == batch.created_at + timedelta(days=2)
    assert session.info["messages"] == [Message(Job.VALIDATE, batch.id.hex)]


@pytest.mark.parametrize(
    ("endpoint", "models"),
    [
        ("/v1/rerank", {"bge-reranker-v2"}),
        ("/v1/chat/completions", {"bge-reranker-v2", "mistral-small-3-1"}),
    ],
)
def test_prices_are_of_the_models_that_a_line_may_name(
    session: Session, caller: Caller, endpoint: str, models: set[str]
) -> None:
    assert set(make(session, caller, endpoint=endpoint).price_snapshot) == models


def test_the_input_must_be_the_callers_and_for_batches(session: Session, caller: Caller) -> None:
    for owner, purpose in [(factories.caller(session), "batch"), (caller, "vision")]:
        file = factories.input_file(session, owner, b"{}", purpose=purpose)
        with pytest.raises(InvalidRequest) as caught:
            batches.create(
                session,
                caller,
                input_file_id=ids.render("file", file.id),
                endpoint="/v1/rerank",
                completion_window="24h",
                metadata={},
            )
        assert caught.value.param == "input_file_id"


def test_progress_is_the_sum_over_tasks_while_a_batch_runs(
    session: Session, caller: Caller
) -> None:
    running, fresh, ended = (make(session, caller) for _ in range(3))
    running.status = "in_progress"
    done = {
        "model": "m",
        "lines": 10,
        "line_index": b"",
        "completed": 4,
        "failed": 1,
        "input_tokens": 40,
        "output_tokens": 8,
    }
    session.execute(
        insert(Task),
        [
            {"batch_id": batch.id, "seq": seq, **done}
            for batch in (running, ended)
            for seq in (1, 2)
        ],
    )
    ended.status, ended.total, ended.completed, ended.failed, ended.input_tokens = (
        "completed",
        20,
        18,
        2,
        7,
    )
    session.flush()
    found = batches.progress(session, [running, fresh, ended])
    assert found[running.id] == Progress(
        total=20, completed=8, failed=2, input_tokens=80, output_tokens=16
    )
    assert found[running.id].done == 10
    assert found[fresh.id] == Progress()
    assert found[ended.id] == Progress(total=20, completed=18, failed=2, input_tokens=7)
    assert batches.progress(session, []) == {}


def test_a_batch_is_its_accounts_and_its_modes(session: Session, caller: Caller) -> None:
    batch = make(session, caller)
    name = ids.render("batch", batch.id)
    assert batches.get(session, caller, name) is batch
    other_mode = Caller(caller.account_id, not caller.livemode, caller.scopes, caller.key_id)
    for stranger in (factories.caller(session), other_mode):
        with pytest.raises(NotFound):
            batches.get(session, stranger, name)
