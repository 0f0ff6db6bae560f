"""The reason for which a batch waits, derived from the workers' reports and the catalog."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import update
from structlog.testing import capture_logs

from tests import factories
from tests.factories import CHAT_MODEL, RERANK_MODEL, chat_line
from tests.integration import engines
from tests.integration.conftest import Api, new_key
from tests.waiting import wait_until
from xalen_batch import catalog, db, disk, ids
from xalen_batch.batches import waits
from xalen_batch.billing import prices
from xalen_batch.cli.doctor import installation
from xalen_batch.cli.doctor.findings import Doubtful
from xalen_batch.models import Batch, workers
from xalen_batch.models.workers import WorkerWait, WorkerWaitReason
from xalen_batch.pipeline import finalize, recover, validate
from xalen_batch.storage import marks
from xalen_batch.worker.engine import Engine

pytestmark = pytest.mark.usefixtures("database")

SECOND = (
    '[models.second]\nname = "Second"\nowned_by = "x"\ncategory = "compact"\nparameters ='
    ' "1B"\ncontext_window = 8192\nendpoints = ["/v1/chat/completions"]\nprice = { input = "1",'
    ' output = "2" }\n'
)
DOWN = WorkerWait(
    WorkerWaitReason.BACKEND, 90.0, "No connection to the backend could be made.", CHAT_MODEL, False
)


@pytest.fixture
def use(configure: Callable[..., None], tmp_path: Path) -> Callable[[str], None]:
    """Put a catalog in force over the built-in one."""

    def use(text: str) -> None:
        (tmp_path / "catalog.toml").write_text(text)
        configure(catalog=tmp_path / "catalog.toml")

    return use


@pytest.fixture
def live(api: Api) -> Api:
    return Api(api.port, new_key(livemode=True))


def a_worker(name: str = "host:1:a", *waits: WorkerWait, **sees: Any) -> None:
    """A live worker that sees the store, unless told otherwise."""
    with db.transaction() as session:
        workers.seen(
            session,
            name,
            waits=waits,
            **({"store": marks.identity(), "catalog": catalog.fingerprint()} | sees),
        )


def a_batch(api: Api, *lines: dict[str, Any]) -> str:
    file = api.upload(factories.jsonl(list(lines) or [chat_line("a")]))
    body = {
        "input_file_id": file["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    id: str = api.ask("POST", "/v1/batches", body).json["id"]
    validate.run(ids.parse("batch", id) or uuid4())
    return id


def waiting(api: Api, id: str) -> dict[str, Any] | None:
    """What a batch waits for and that does not pass by itself, which lists show too."""
    found: dict[str, Any] | None = api.ask("GET", f"/v1/batches/{id}").json["waiting"]
    found = None if found is None or found["reason"] in waits.USUAL else found
    assert api.ask("GET", "/v1/batches").json["data"][0]["waiting"] == found
    return found


def test_one_that_runs_waits_for_nothing(api: Api) -> None:
    a_worker()
    id = a_batch(api)
    assert waiting(api, id) is None
    assert api.ask("POST", f"/v1/batches/{id}/cancel").json["waiting"] is None


def test_one_that_is_cancelled_before_it_is_validated_has_no_lines(api: Api) -> None:
    file = api.upload(factories.jsonl([chat_line("a")]))
    body = {
        "input_file_id": file["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    id = api.ask("POST", "/v1/batches", body).json["id"]
    api.ask("POST", f"/v1/batches/{id}/cancel")
    finalize.run(ids.parse("batch", id) or uuid4())
    found = api.ask("GET", f"/v1/batches/{id}").json
    assert (found["status"], found["output_file_id"], found["error_file_id"], found["waiting"]) == (
        "cancelled",
        None,
        None,
        None,
    )
    assert (found["request_counts"]["total"], found["request_counts"]["failed"]) == (0, 0)


def test_without_a_worker(api: Api) -> None:
    found = waiting(api, a_batch(api))
    assert found == {
        "reason": "no_worker",
        "model": None,
        "since": None,
        "message": "No worker is running. It goes on when one starts.",
    }


def test_a_backend_that_does_not_answer_is_named_with_its_last_error_and_since_when(
    api: Api,
) -> None:
    a_worker()
    a_worker("host:2:b", DOWN)
    found = waiting(api, a_batch(api)) or {}
    assert (found["reason"], found["model"]) == ("backend_unavailable", CHAT_MODEL)
    assert "No connection to the backend could be made." in found["message"]
    assert 80 < datetime.now(UTC).timestamp() - found["since"] < 180


@pytest.mark.parametrize(
    "wait",
    [
        WorkerWait(WorkerWaitReason.BACKEND, 9.0, "x", CHAT_MODEL, True),
        WorkerWait(WorkerWaitReason.BACKEND, 9.0, "x", RERANK_MODEL, False),
    ],
)
def test_the_backend_of_another_model_or_mode_is_no_matter(api: Api, wait: WorkerWait) -> None:
    a_worker("host:1:a", wait)
    assert waiting(api, a_batch(api)) is None


def test_a_disk_that_is_short(api: Api) -> None:
    a_worker("host:1:a", WorkerWait(WorkerWaitReason.DISK, 5.0))
    found = waiting(api, a_batch(api)) or {}
    assert found["reason"] == "disk_short"
    assert found["since"] is not None
    a_worker("host:2:b")
    assert waiting(api, found_id(api)) is None


def found_id(api: Api) -> str:
    id: str = api.ask("GET", "/v1/batches").json["data"][0]["id"]
    return id


@pytest.mark.parametrize("store", [None, uuid4()])
def test_storage_that_no_worker_sees(api: Api, store: object) -> None:
    id = a_batch(api)
    a_worker("host:1:a", WorkerWait(WorkerWaitReason.STORAGE, 5.0), store=store)
    found = waiting(api, id) or {}
    assert (found["reason"], found["since"] is None) == ("storage_unavailable", False)
    a_worker("host:2:b")
    assert waiting(api, id) is None


def test_an_execution_window_that_is_closed(api: Api) -> None:
    a_worker()
    id = a_batch(api)
    opens = datetime.now(UTC) + timedelta(hours=3)
    window = {"start": "22:00", "end": "06:00", "days": ["mon"], "timezone": "UTC"}
    with db.transaction() as session:
        session.execute(
            update(Batch).values(
                execution_window=window,
                window_opens_at=opens,
                window_closes_at=opens + timedelta(hours=8),
            )
        )
    found = waiting(api, id) or {}
    assert (found["reason"], found["message"]) == (
        "execution_window",
        f"Its execution window opens {opens:%Y-%m-%d %H:%M} UTC.",
    )


class TestCatalog:
    def test_a_model_that_left_it_is_named(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        a_worker()
        id = a_batch(api)
        left = {name: model for name, model in catalog.models().items() if name != CHAT_MODEL}
        monkeypatch.setattr(catalog, "models", lambda: left)
        found = waiting(api, id) or {}
        assert (found["reason"], found["model"]) == ("model_missing", CHAT_MODEL)
        assert CHAT_MODEL in found["message"]

    def test_doctor_names_it(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        a_worker()
        a_batch(api)
        assert installation.open_batches(has_database=True) == "1 open, none waits"
        left = {name: model for name, model in catalog.models().items() if name != CHAT_MODEL}
        monkeypatch.setattr(catalog, "models", lambda: left)
        with pytest.raises(
            Doubtful, match=rf"Waiting: 1\. The catalog no longer has the model {CHAT_MODEL}"
        ):
            installation.open_batches(has_database=True)

    def test_of_several_models_the_one_that_waits_is_named(
        self, api: Api, use: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use(SECOND)
        with db.transaction() as session:
            prices.sync(session, prices.differences(session))
        a_worker()
        id = a_batch(api, chat_line("a"), chat_line("b", model="second"))
        assert waiting(api, id) is None
        left = {name: model for name, model in catalog.models().items() if name != "second"}
        monkeypatch.setattr(catalog, "models", lambda: left)
        assert (waiting(api, id) or {})["model"] == "second"


class TestEngine:
    @pytest.fixture
    def engine(self, configure: Callable[..., None]) -> Iterator[Engine]:
        configure(flush_interval=0.05, retry_base=0.01, retry_cap=0.02)
        with engines.running() as engine:
            yield engine

    def test_a_server_that_is_not_there_is_told_before_the_line_has_failed(
        self, live: Api, use: Callable[[str], None], engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("xalen_batch.worker.silence.REPORTED_AFTER", 0.0)
        use(f'[models."{CHAT_MODEL}".backend]\nbase_url = "http://127.0.0.1:1/v1"\n')
        id = a_batch(live)
        engine.wake()
        wait_until(engine.waits)
        [wait] = engine.waits()
        assert (wait.reason, wait.model, wait.livemode) == (
            WorkerWaitReason.BACKEND,
            CHAT_MODEL,
            True,
        )
        a_worker("host:1:a", wait)
        found = waiting(live, id) or {}
        assert found["reason"] == "backend_unavailable"
        assert "127.0.0.1" not in found["message"]

    def test_a_model_that_is_missing_is_logged_by_its_name(
        self, api: Api, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        id = a_batch(api)
        left = {name: model for name, model in catalog.models().items() if name != CHAT_MODEL}
        monkeypatch.setattr(catalog, "models", lambda: left)
        with capture_logs() as logs:
            engine.drain()
        [entry] = [entry for entry in logs if entry["log_level"] == "error"]
        assert (entry["event"], entry["model"], entry["batch_id"]) == (
            "model.missing",
            CHAT_MODEL,
            ids.parse("batch", id),
        )
        assert recover.due() == []

    @pytest.mark.parametrize("reason", [WorkerWaitReason.DISK, WorkerWaitReason.STORAGE])
    def test_what_keeps_it_from_claiming_is_told_until_it_is_over(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch, reason: WorkerWaitReason
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(
                disk,
                "short",
                lambda: {disk.Store.DATABASE: None} if reason is WorkerWaitReason.DISK else {},
            )
            patch.setattr(marks, "is_here", lambda: reason is not WorkerWaitReason.STORAGE)
            engine.drain()
            assert [wait.reason for wait in engine.waits()] == [reason]
        engine.drain()
        assert engine.waits() == []


def one(batch_id: Any) -> waits.Wait | None:
    with db.reading() as session:
        return waits.of_one(session, session.get_one(Batch, batch_id))


def test_a_batch_that_is_validating_says_how_many_are_before_it() -> None:
    a_worker()
    with db.transaction() as session:
        caller = factories.caller(session)
        file = factories.input_file(session, caller, [chat_line("a")])
        first, second = (factories.batch(session, caller, file).id for _ in range(2))
    assert [wait and wait.message for wait in map(one, (first, second))] == [
        "Its input file waits to be read.",
        "Its input file waits to be read, behind 1 more.",
    ]
    with db.transaction() as session:
        session.get_one(Batch, first).lease_until = datetime.now(UTC) + timedelta(minutes=1)
    wait = one(first)
    assert wait is not None
    assert (wait.reason, wait.message) == ("validation", "Its input file is being read.")


def test_a_batch_without_a_line_in_flight_waits_for_its_turn() -> None:
    a_worker()
    batch_id = engines.a_batch(engines.chat_lines(3))
    wait = one(batch_id)
    assert wait is not None
    assert wait.reason == "turn"
    engines.a_claim()
    assert one(batch_id) is None


def test_a_limit_per_minute_is_named_with_its_figures(use: Callable[[str], None]) -> None:
    use(
        f'[models.{CHAT_MODEL}.backend]\nbase_url = "http://127.0.0.1:1/v1"\n'
        "requests_per_minute = 600\ntokens_per_minute = 90000\n"
    )
    with db.transaction() as session:
        caller = factories.caller(session, livemode=True)
        file = factories.input_file(session, caller, [chat_line("a")])
        batch = factories.batch(session, caller, file, backends={CHAT_MODEL: "openai"})
    validate.run(batch.id)
    a_worker("host:1:a", WorkerWait(WorkerWaitReason.RATE_LIMIT, 9.0, "", CHAT_MODEL, True))
    wait = one(batch.id)
    assert wait is not None
    assert (wait.reason, wait.model) == ("rate_limit", CHAT_MODEL)
    assert "600 requests and 90,000 tokens per minute" in wait.message
    assert wait.since is not None
    # In lists it does not stand: the lines go on.
    with db.reading() as session:
        assert waits.of(session, [session.get_one(Batch, batch.id)]) == {}
