"""The backends and prices of a live batch are explicit, and frozen when it is created."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, update
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from tests import factories
from tests.conftest import as_owner
from tests.factories import CHAT_MODEL, EMBEDDING_MODEL, RERANK_MODEL, chat_line
from tests.integration.conftest import Api
from tests.integration.engines import run_to_end
from tests.unit.cli.fake_api import serving
from xalen_batch import db, ids
from xalen_batch.accounts import accounts, keys
from xalen_batch.accounts.accounts import Caller
from xalen_batch.cli import prices as of_prices
from xalen_batch.cli.invoices import print_invoice
from xalen_batch.cli.main import app
from xalen_batch.models import Account, AuditEntry, Batch, InvoiceLine, Price, Task
from xalen_batch.models import Result as ResultRow
from xalen_batch.pipeline import validate
from xalen_batch.standalone import ports
from xalen_batch.standalone.supervisor import Supervisor
from xalen_batch.states import TaskState
from xalen_batch.worker.engine import Engine

pytestmark = pytest.mark.usefixtures("database", "valkey")

NOWHERE = "http://127.0.0.1:9/v1"
ON_A_SERVER = f'[models.{CHAT_MODEL}.backend]\nbase_url = "{NOWHERE}"\n'
SIMULATED = f'[models.{CHAT_MODEL}.backend]\nkind = "simulated"\n'
ADDED = (
    '[models.added]\nname = "Added"\nowned_by = "x"\ncategory = "compact"\nparameters ='
    ' "1B"\ncontext_window = 8192\nendpoints = ["/v1/chat/completions"]\nprice = { input = "1",'
    ' output = "2" }\n'
)

Use = Callable[[str], Path]


@pytest.fixture
def use(configure: Callable[..., None], tmp_path: Path) -> Use:
    """Have this process read another catalog, as a restart does."""

    def change(toml: str) -> Path:
        path = tmp_path / "catalog.toml"
        path.write_text(toml, "utf-8")
        configure(catalog=path, flush_interval=0.05)
        return path

    return change


@pytest.fixture
def caller(database: str) -> Caller:
    with db.transaction() as session:
        return factories.caller(session, livemode=True)


@pytest.fixture
def live(api: Api, caller: Caller) -> Api:
    with db.transaction() as session:
        _, secret = keys.create(session, caller, name="live")
    return Api(api.port, secret)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with ThreadPoolExecutor(8) as pool:
        engine = Engine(pool.submit)
        yield engine
        engine.stop()
        pool.shutdown(wait=True)
        engine.close()


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


def allow(caller: Caller) -> None:
    with db.transaction() as session:
        name = session.get_one(Account, caller.account_id).name
    assert "payable" in command("accounts", "simulation", name, "--allow").stderr


def ask(api: Api, *models: str) -> Any:
    """Create a batch of a line for each model; the answer."""
    file = api.upload(
        factories.jsonl([chat_line(f"line-{n}", model=model) for n, model in enumerate(models)])
    )
    request = {
        "input_file_id": file["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    return api.ask("POST", "/v1/batches", request)


def created(api: Api, *models: str) -> UUID:
    answer = ask(api, *models)
    assert answer.status == 200, answer.body
    id = ids.parse("batch", answer.json["id"])
    assert id is not None
    validate.run(id)
    return id


def read(id: UUID) -> Batch:
    with db.transaction() as session:
        return session.get_one(Batch, id)


class TestBackends:
    def test_models_that_ship_run_nowhere_and_a_live_batch_is_refused_at_creation(
        self, live: Api
    ) -> None:
        error = ask(live, CHAT_MODEL).error
        assert (error["code"], error["param"]) == ("model_has_no_backend", "endpoint")
        assert (
            f"[models.{CHAT_MODEL}.backend] of the file that XALEN_CATALOG names"
            in error["message"]
        )

    def test_an_added_model_with_an_address_runs_there_and_not_on_the_simulated_model(
        self, live: Api, use: Use, engine: Engine
    ) -> None:
        with serving() as server:
            use(f'{ADDED}[models.added.backend]\nbase_url = "{server.base_url}"\n')
            assert command("prices", "sync", "--yes").exit_code == 0
            id = created(live, "added")
            assert read(id).backends == {"added": "openai"}
            server.answers = [(400, {}, b'{"error": {"message": "No."}}')]
            assert run_to_end(engine, id).failed == 1
            assert [path for _, path, *_ in server.requests] == ["/v1/chat/completions"]

    def test_one_model_without_a_backend_fails_the_batch_with_the_remedy(
        self, live: Api, use: Use
    ) -> None:
        use(ON_A_SERVER)
        batch = read(created(live, CHAT_MODEL, RERANK_MODEL))
        assert batch.status == "failed"
        [fault] = batch.errors or []
        assert (fault["code"], fault["param"]) == ("model_has_no_backend", "body.model")
        assert fault["message"].startswith(f"{RERANK_MODEL} has no live backend.")

    def test_the_word_simulated_is_not_enough_without_the_accounts_leave(
        self, live: Api, use: Use, caller: Caller
    ) -> None:
        use(SIMULATED)
        assert ask(live, CHAT_MODEL).error["code"] == "model_has_no_backend"
        with db.transaction() as session:
            other = factories.caller(session, livemode=True)
        allow(other)
        assert ask(live, CHAT_MODEL).status == 400
        allow(caller)
        assert ask(live, CHAT_MODEL).status == 200
        with db.transaction() as session:
            accounts.let_simulate(session, caller.account_id, False)
        assert ask(live, CHAT_MODEL).status == 400

    def test_simulated_answers_are_said_on_the_invoice(
        self, live: Api, use: Use, caller: Caller, engine: Engine
    ) -> None:
        use(SIMULATED)
        allow(caller)
        id = created(live, CHAT_MODEL)
        with db.transaction() as session:
            # A batch keeps the permission of its creation.
            accounts.let_simulate(session, caller.account_id, False)
        assert run_to_end(engine, id).status == "completed"
        invoice = live.ask("GET", f"/v1/batches/{ids.render('batch', id)}/invoice").json
        assert [line["answered_by"] for line in invoice["lines"]] == [
            "simulated",
            "simulated",
            None,
        ]
        statement = live.ask("GET", f"/v1/statements/{datetime.now(UTC):%Y-%m}").json
        assert statement["lines"][0]["description"].endswith(", simulated answers")
        result = CliRunner().invoke(_printing(invoice), [])
        assert f"Answers of {CHAT_MODEL} were simulated." in result.stdout
        with (
            pytest.raises(Exception, match="an issued invoice never changes"),
            as_owner() as session,
        ):
            session.execute(update(InvoiceLine).values(answered_by="openai"))

    @pytest.mark.parametrize(
        ("before", "after"), [(ON_A_SERVER, SIMULATED), (SIMULATED, ON_A_SERVER), (ON_A_SERVER, "")]
    )
    def test_a_batch_waits_while_the_catalog_has_another_backend_than_it_was_created_with(
        self, live: Api, use: Use, caller: Caller, engine: Engine, before: str, after: str
    ) -> None:
        allow(caller)
        use(before)
        id = created(live, CHAT_MODEL)
        use(after)
        with capture_logs() as logs:
            engine.drain()
        [entry] = [entry for entry in logs if entry["event"] == "backend.changed"]
        assert (entry["batch_id"], entry["created_with"]) == (
            id,
            "openai" if before == ON_A_SERVER else "simulated",
        )
        with db.transaction() as session:
            [task] = session.scalars(select(Task)).all()
            assert (task.state, task.not_before is not None) == (TaskState.PENDING, True)
            assert session.scalar(select(func.count()).select_from(ResultRow)) == 0

    def test_a_batch_that_waited_runs_when_the_catalog_is_put_right(
        self, live: Api, use: Use, caller: Caller, engine: Engine
    ) -> None:
        allow(caller)
        use(SIMULATED)
        id = created(live, CHAT_MODEL)
        use("")
        engine.drain()
        use(SIMULATED)
        with db.transaction() as session:
            session.execute(update(Task).values(not_before=None))
        assert run_to_end(engine, id).completed == 1

    def test_batches_from_before_the_column_run_on_a_server_and_on_nothing_else(
        self, use: Use, caller: Caller, engine: Engine
    ) -> None:
        use(SIMULATED)
        with db.transaction() as session:
            id = factories.batch(
                session, caller, factories.input_file(session, caller, [chat_line("a")])
            ).id
        validate.run(id)
        assert read(id).backends is None
        with capture_logs() as logs:
            engine.drain()
        assert [entry["created_with"] for entry in logs if entry["event"] == "backend.changed"] == [
            "openai"
        ]

    def test_an_estimate_and_the_terms_say_what_would_answer(self, live: Api, use: Use) -> None:
        use(ON_A_SERVER)
        told = live.ask("GET", "/v1/terms").json
        assert {model["id"]: model["answered_by"] for model in told["models"]} == {
            CHAT_MODEL: "openai",
            RERANK_MODEL: None,
            EMBEDDING_MODEL: None,
        }
        file = live.upload(factories.jsonl([chat_line("a", model=RERANK_MODEL)]))
        estimate = live.ask("POST", "/v1/batches/estimate", {"input_file_id": file["id"]}).json
        assert [error["code"] for error in estimate["errors"]["data"]] == ["model_has_no_backend"]

    def test_test_keys_get_simulated_answers_whatever_the_catalog_says(
        self, api: Api, use: Use, engine: Engine
    ) -> None:
        use(ON_A_SERVER)
        assert {model["answered_by"] for model in api.ask("GET", "/v1/terms").json["models"]} == {
            "simulated"
        }
        assert run_to_end(engine, created(api, CHAT_MODEL)).completed == 1


def _printing(invoice: dict[str, Any]) -> Any:
    import typer

    shown = typer.Typer()
    shown.command()(lambda: print_invoice(invoice))
    return shown


def changed() -> list[AuditEntry]:
    with db.transaction() as session:
        return list(
            session.scalars(
                select(AuditEntry).where(AuditEntry.action.like("price.%")).order_by(AuditEntry.id)
            )
        )


class TestPrices:
    @pytest.fixture(autouse=True)
    def _wide(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "200")

    def test_migrating_without_the_catalog_that_made_the_prices_changes_none(
        self, use: Use, configure: Callable[..., None]
    ) -> None:
        use(f'{ADDED}[models.{CHAT_MODEL}]\nprice = {{ input = "7" }}\n')
        assert command("prices", "sync", "--yes").exit_code == 0
        before = json.loads(command("prices", "list", "--json").stdout)
        configure(catalog="")
        assert command("migrate").exit_code == 0
        assert json.loads(command("prices", "list", "--json").stdout) == before

    def test_a_sync_that_nobody_can_be_asked_about_shows_and_changes_nothing(
        self, use: Use
    ) -> None:
        use(f'[models.{CHAT_MODEL}]\nprice = {{ input = "7" }}\n')
        before = len(changed())
        result = command("prices", "sync")
        assert result.exit_code == 2
        assert "there is no terminal to ask on. Run it again with --yes" in result.stderr
        assert [row.split() for row in result.stdout.splitlines() if CHAT_MODEL in row] == [
            [CHAT_MODEL, "input", "test", "0.02", "7"],
            [CHAT_MODEL, "input", "live", "0.02", "7"],
        ]
        assert len(changed()) == before

    @pytest.mark.parametrize(("answer", "code", "number"), [("y\n", 0, 2), ("n\n", 1, 0)])
    def test_on_a_terminal_it_asks(
        self, use: Use, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, number: int
    ) -> None:
        use(f'[models.{CHAT_MODEL}]\nprice = {{ input = "7" }}\n')
        before = len(changed())
        monkeypatch.setattr(of_prices, "_has_terminal", lambda: True)
        result = CliRunner().invoke(app, ["prices", "sync"], input=answer)
        assert result.exit_code == code
        assert "Change 2 prices to those of" in result.stderr
        assert len(changed()) - before == number

    def test_the_audit_log_has_model_component_mode_both_prices_and_who(self, use: Use) -> None:
        use(f'[models.{CHAT_MODEL}]\nprice = {{ input = "7" }}\n')
        assert command("prices", "sync", "--yes").exit_code == 0
        *_, test, live = changed()
        assert (test.action, test.livemode, live.action, live.livemode) == (
            "price.changed",
            False,
            "price.changed",
            True,
        )
        assert live.actor.startswith("cli:")
        assert live.before == {"model": CHAT_MODEL, "component": "input", "usd_per_million": "0.02"}
        assert {**(live.after or {}), "valid_from": ""} == {
            **live.before,
            "usd_per_million": "7",
            "valid_from": "",
        }
        shown = command("audit").stdout.splitlines()[-1]
        assert {"price.changed", live.object_id, "live", f"model={CHAT_MODEL}"} <= set(
            shown.split()
        )
        assert "usd_per_million=0.02 → 7" in shown

    @pytest.mark.parametrize("without", ["the model", "a component"])
    def test_a_price_ends_only_by_the_models_name(self, use: Use, without: str) -> None:
        use(ADDED)
        assert command("prices", "sync", "--yes").exit_code == 0
        use("" if without == "the model" else ADDED.replace(', output = "2"', ""))
        before = json.loads(command("prices", "list", "--json").stdout)
        refused = command("prices", "sync", "--yes")
        assert refused.exit_code == 2
        assert (
            "Name the server's catalog in XALEN_CATALOG; or, if they are to end: xalen-batch prices"
            " sync --close added" in refused.stderr
        )
        assert json.loads(command("prices", "list", "--json").stdout) == before
        assert (
            command("prices", "sync", "--yes", "--close", "added", "--close", CHAT_MODEL).exit_code
            == 2
        )
        assert command("prices", "sync", "--yes", "--close", "added").exit_code == 0
        ended = [entry for entry in changed() if entry.action == "price.closed"]
        assert len(ended) == (4 if without == "the model" else 2)
        assert (ended[0].before or {})["model"] == "added"

    def test_a_model_without_a_price_is_refused_and_everybody_is_told(
        self, api: Api, use: Use
    ) -> None:
        use(ADDED)
        batch = read(created(api, "added"))
        [fault] = batch.errors or []
        assert (fault["code"], "`xalen-batch prices sync`" in fault["message"]) == (
            "model_not_priced",
            True,
        )
        checks = {
            check["name"]: check
            for check in json.loads(command("doctor", "--json").stdout)["checks"]
        }
        assert checks["prices"]["status"] == "warning"
        assert (
            "Batches that name added are refused, for want of a price in force. `xalen-batch prices"
            " sync`" in checks["prices"]["detail"]
        )
        assert command("prices", "sync", "--yes").exit_code == 0
        assert read(created(api, "added")).status == "in_progress"
        use(f'{ADDED}[models.{CHAT_MODEL}]\nprice = {{ input = "7" }}\n')
        checks = {
            check["name"]: check
            for check in json.loads(command("doctor", "--json").stdout)["checks"]
        }
        assert (
            f"Prices in force differ from the catalog's ({CHAT_MODEL})"
            in checks["prices"]["detail"]
        )

    def test_a_start_of_up_tells_of_an_edited_catalog_and_changes_no_price(
        self, use: Use, tmp_path: Path
    ) -> None:
        said: list[str] = []
        listener = ports.Listener("127.0.0.1", 0, [])
        supervisor = Supervisor(tmp_path, listener, said.append, local={})
        supervisor._tell_of_prices()
        assert said == []
        use(f'[models.{CHAT_MODEL}]\nprice = {{ input = "7" }}\n')
        before = len(changed())
        supervisor._tell_of_prices()
        assert f"Prices in force differ from the catalog's ({CHAT_MODEL})" in said[0]
        assert len(changed()) == before

    def test_nothing_priced_at_all_is_refused_at_creation(self, api: Api) -> None:
        with db.transaction() as session:
            session.execute(update(Price).values(valid_to=func.clock_timestamp()))
        assert ask(api, CHAT_MODEL).error["code"] == "model_not_priced"


@pytest.mark.parametrize(
    ("toml", "status", "words"),
    [
        ("", "warning", "The catalog names no server: live batches of this model are refused."),
        (
            SIMULATED,
            "warning",
            (
                "live keys of accounts that `xalen-batch accounts simulation` allows get simulated"
                " answers"
            ),
        ),
        (ON_A_SERVER, "warning", "cannot be reached"),
    ],
)
def test_doctor_says_what_answers_live_keys(use: Use, toml: str, status: str, words: str) -> None:
    use(toml)
    checks = {
        check["name"]: check for check in json.loads(command("doctor", "--json").stdout)["checks"]
    }
    found = checks[f"backend of {CHAT_MODEL}"]
    assert found["status"] == status
    assert words in found["detail"]
