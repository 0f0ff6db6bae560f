"""`--json`: every command that prints data has it, and prints one JSON object; a list is an object
with `data` and `has_more`.
"""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from tests import billing, factories
from tests.billing import Ran
from tests.factories import RERANK_MODEL, chat_line, jsonl
from tests.model_servers import VLLM, imitate
from tests.unit.cli.fake_api import Api, serving
from tests.unit.cli.schedules.answers import PREVIEW, RUN, SCHEDULE, ok
from xalen_batch import db, ids
from xalen_batch.accounts import keys
from xalen_batch.accounts.accounts import Owner
from xalen_batch.billing import price_changes, sign_offs
from xalen_batch.cli import client
from xalen_batch.cli.main import app
from xalen_batch.endpoints.usage import Usage

# Commands that print no data but logs, or the bytes of a file.
WITHOUT = {
    *("up", "api", "worker", "beat", "migrate", "simulate", "local-model"),
    # They write JSONL and CSV.
    *("files download", "invoices", "accounts invoices"),
}
# Prints one object on each line until Ctrl-C (tests/unit/cli/webhooks/test_listen.py).
ENDLESS = {"webhooks listen"}
LIST = {"object", "data", "has_more"}

BATCH: dict[str, Any] = {
    "id": "batch_1",
    "object": "batch",
    "status": "completed",
    "input_file_id": "file-1",
    "endpoint": "/v1/chat/completions",
    "created_at": 1_795_800_000,
    "errors": None,
    "request_counts": {"total": 1, "completed": 1, "failed": 0},
}
FILE: dict[str, Any] = {
    "id": "file-1",
    "object": "file",
    "bytes": 9,
    "created_at": 1_795_800_000,
    "filename": "a",
    "purpose": "batch",
}
INVOICE: dict[str, Any] = {
    "id": "inv_1",
    "object": "invoice",
    "batch_id": "batch_1",
    "lines": [],
    "livemode": False,
}
WHE, EVT = f"whe_{'0' * 32}", f"evt_{'0' * 32}"
WEBHOOK: dict[str, Any] = {
    "id": WHE,
    "object": "webhook_endpoint",
    "url": "https://example.com/hook",
    "events": None,
    "status": "enabled",
    "batch_id": None,
    "created_at": 1_795_800_000,
}
DELIVERY: dict[str, Any] = {
    "id": EVT,
    "object": "webhook_delivery",
    "event": {"id": EVT, "type": "xalen.webhook.test", "data": {"id": WHE}},
    "state": "delivered",
    "attempts": 1,
    "status_code": 200,
    "duration_ms": 5,
    "error": None,
    "next_attempt_at": None,
}
MODELS: dict[str, Any] = {
    "object": "list",
    "data": [{"id": "mistral-small-3-1", "object": "model"}],
}
LINES = b'{"custom_id": "a"}\n{"custom_id": "b\xe2\x80\xa8"}\n'


def page(*data: dict[str, Any], has_more: bool = False) -> tuple[int, dict[str, str], bytes]:
    return ok(
        {"object": "list", "data": data, "first_id": None, "last_id": None, "has_more": has_more}
    )


# By command: its arguments, and the answers of the API to its requests.
CALLS: dict[str, tuple[list[str], list[Any]]] = {
    "run": (["FILE", "-o", "OUT"], [ok(FILE), ok(BATCH), ok(BATCH), (200, {}, LINES), ok(INVOICE)]),
    "submit": (["FILE"], [ok(FILE), ok(BATCH)]),
    "watch": (["batch_1"], [ok(BATCH)]),
    "list": (["--limit", "1"], [page(BATCH, has_more=True)]),
    "show": (["batch_1"], [ok(BATCH)]),
    "results": (["batch_1"], [ok(BATCH), (200, {}, LINES)]),
    "cancel": (["batch_1"], [ok(BATCH)]),
    "retry": (["batch_1"], [ok(BATCH | {"retry_codes": ["http_503"]})]),
    "retries": (["batch_1"], [page(BATCH)]),
    "explain": (["batch_1", "a"], [ok({"object": "batch.line", "custom_id": "a"})]),
    "validate": (["FILE"], []),
    "invoice": (["batch_1"], [ok(INVOICE)]),
    "statement": (["2026-11"], [ok({"object": "statement", "month": "2026-11", "lines": []})]),
    "limits": ([], [ok({"object": "limits", "open_batches": {"used": 0, "limit": 1, "free": 1}})]),
    "models": ([], [ok(MODELS)]),
    "models show": (["mistral-small-3-1"], []),
    "models add": (["SERVER", "--price", "input=1,output=2", "--no-ramp", "--yes"], []),
    "backends test": (["--no-ramp"], []),
    "backends scan": ([], []),
    "files upload": (["FILE"], [ok(FILE)]),
    "files list": ([], [page(FILE)]),
    "files show": (["file-1"], [ok(FILE)]),
    "files delete": (["file-1"], [ok({"id": "file-1", "object": "file", "deleted": True})]),
    "schedules create": (
        ["t", "--cron", "@daily", "--file-id", "file-1"],
        [(200, {}, jsonl([chat_line("a")])), ok(SCHEDULE), ok(PREVIEW)],
    ),
    "schedules edit": (["sched_1", "--name", "t"], [ok(SCHEDULE), ok(SCHEDULE), ok(PREVIEW)]),
    "schedules list": ([], [page(SCHEDULE)]),
    "schedules show": (["sched_1"], [ok(SCHEDULE)]),
    "schedules runs": (["sched_1"], [page(RUN)]),
    "schedules run": (["sched_1"], [ok(RUN)]),
    "schedules backfill": (
        ["sched_1", "--from", "2026-11-01", "--to", "2026-11-02"],
        [ok({"object": "list", "data": [RUN]})],
    ),
    "schedules preview": (["sched_1"], [ok(PREVIEW)]),
    "schedules add": (
        ["sched_1", "FILE"],
        [
            ok(
                {
                    "schedule_id": "sched_1",
                    "accepted": 1,
                    "known": 0,
                    "pending": None,
                    "next_fire_at": None,
                }
            )
        ],
    ),
    "schedules pause": (["sched_1"], [ok(SCHEDULE | {"status": "paused"})]),
    "schedules resume": (["sched_1"], [ok(SCHEDULE)]),
    "schedules delete": (
        ["sched_1"],
        [ok({"id": "sched_1", "deleted": True, "discarded_requests": 0})],
    ),
    "webhooks create": (["https://example.com/hook"], [ok(WEBHOOK | {"secret": "whsec_a"})]),
    "webhooks list": ([], [page(WEBHOOK)]),
    "webhooks show": ([WHE], [ok(WEBHOOK)]),
    "webhooks update": ([WHE, "--enabled", "off"], [ok(WEBHOOK)]),
    "webhooks rotate": ([WHE], [ok(WEBHOOK | {"secret": "whsec_a"})]),
    "webhooks delete": ([WHE], [ok({"id": WHE, "object": "webhook_endpoint", "deleted": True})]),
    "webhooks test": ([WHE], [ok(DELIVERY), page(DELIVERY)]),
    "webhooks deliveries": ([WHE], [page(DELIVERY)]),
    "webhooks redeliver": ([WHE, EVT], [ok(DELIVERY)]),
    "webhooks replay": (
        [WHE, "--from", "2026-11-01", "--to", "2026-11-02"],
        [ok({"object": "webhook_replay", "events": 1})],
    ),
    "version": ([], []),
    "doctor": ([], []),
    "reconcile": ([], []),
    "audit": (["--limit", "1"], []),
    "prices": ([], []),
    "prices list": ([], []),
    "prices sync": (["--yes"], []),
    "prices set": (["mistral-small-3-1", "input=1", "--from", "2027-01-01"], []),
    "prices upcoming": ([], []),
    "prices cancel": (["UPCOMING"], []),
    "credits create": (["BILLED", "--reason", "late"], []),
    "credits list": (["acme"], []),
    "statements sign-off": (["2026-03"], []),
    "statements list": ([], []),
    "statements verify": ([], []),
    "statements export": (["2026-03", "BOOKS"], []),
    "statements verify-files": (["EXPORTED"], []),
    "keys create": (["--account", "acme"], []),
    "keys list": ([], []),
    "keys rotate": (["KEY"], []),
    "keys revoke": (["KEY"], []),
    "accounts limits": (["acme"], []),
    "accounts simulation": (["acme"], []),
    "accounts list": ([], []),
    "accounts create": (["acme-eu"], []),
    "accounts rename": (["acme", "acme-eu"], []),
    "accounts weight": (["acme"], []),
    "accounts disable": (["acme"], []),
    "accounts enable": (["acme"], []),
    "accounts usage": ([], []),
}
LISTS = {
    *(
        "list",
        "results",
        "retries",
        "models",
        "backends test",
        "backends scan",
        "files list",
        "files delete",
        "schedules list",
        "schedules runs",
        "schedules backfill",
        "webhooks list",
        "webhooks deliveries",
    ),
    *(
        "reconcile",
        "audit",
        "prices",
        "credits list",
        "prices list",
        "prices sync",
        "prices set",
        "statements list",
        "statements verify",
        "prices upcoming",
        "prices cancel",
        "keys list",
        "accounts limits",
        "accounts list",
        "accounts usage",
    ),
}


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        here = f"{path} {name}".strip()
        if not isinstance(command, TyperGroup) or command.invoke_without_command:
            yield here, command
        if isinstance(command, TyperGroup):
            yield from commands(command, here)


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(client, "PAUSES", ())
    with serving() as server:
        monkeypatch.setenv("XALEN_BASE_URL", server.base_url)
        monkeypatch.setenv("XALEN_API_KEY", "xln_test_secret")
        yield server


@pytest.fixture
def words(
    database: str, tmp_path: Path, configure: Callable[..., None]
) -> Iterator[dict[str, str]]:
    """The values that replace the words in capitals of CALLS."""
    (tmp_path / "in.jsonl").write_bytes(jsonl([chat_line("a")]))
    with db.transaction() as session:
        key, _ = keys.create(
            session, Owner(factories.account(session, "acme").id, False), name="ci"
        )
        key_id = ids.render("key", key.id)
        price_changes.schedule(
            session,
            RERANK_MODEL,
            {"input": Decimal(1)},
            datetime.now(UTC) + timedelta(days=1),
        )
        signed = sign_offs.sign_off(session, date(2026, 3, 1))
        sign_offs.export(session, signed, tmp_path / "exported")
    billed = billing.ended([Ran(Usage(1_000))])
    with imitate(VLLM) as server:
        catalog = tmp_path / "catalog.toml"
        catalog.write_text(
            f'[models.mistral-small-3-1.backend]\nbase_url = "{server.url}/v1"\n', "utf-8"
        )
        configure(catalog=catalog)
        yield {
            "FILE": str(tmp_path / "in.jsonl"),
            "OUT": str(tmp_path / "out.jsonl"),
            "KEY": key_id,
            "UPCOMING": RERANK_MODEL,
            "BOOKS": str(tmp_path / "books"),
            "EXPORTED": str(tmp_path / "exported"),
            "BILLED": ids.render("batch", billed.id),
            "SERVER": server.url,
        }


def test_every_command_that_prints_data_has_json_and_is_tried_here() -> None:
    with_json = {
        path
        for path, command in COMMANDS.items()
        if any("--json" in param.opts for param in command.params)
    }
    assert with_json == set(COMMANDS) - WITHOUT
    assert set(CALLS) == with_json - ENDLESS
    assert with_json > LISTS


@pytest.mark.parametrize("path", CALLS)
def test_json_is_an_object_or_a_list_object(path: str, api: Api, words: dict[str, str]) -> None:
    arguments, answers = CALLS[path]
    api.answers = list(answers)
    result = CliRunner().invoke(
        app, [*path.split(), *(words.get(word, word) for word in arguments), "--json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    if path in LISTS:
        assert set(found) == LIST
        assert (found["object"], type(found["has_more"])) == ("list", bool)
        assert all(isinstance(item, dict) for item in found["data"])
    else:
        assert isinstance(found, dict)
        assert "data" not in found
    assert api.answers == []


def test_a_list_says_whether_there_is_more(api: Api) -> None:
    for has_more in (True, False):
        # The server filters.
        api.answers = [page(BATCH | {"status": "failed"}, has_more=has_more)]
        found = json.loads(
            CliRunner().invoke(app, ["list", "--status", "failed", "--limit", "1", "--json"]).stdout
        )
        assert ([batch["status"] for batch in found["data"]], found["has_more"]) == (
            ["failed"],
            has_more,
        )


def test_results_are_one_document_in_the_order_of_the_lines(api: Api, tmp_path: Path) -> None:
    running = {"x-batch-complete": "false", "x-batch-lines-total": "9"}
    for status, headers, has_more in (("completed", {}, False), ("in_progress", running, True)):
        api.answers = [ok(BATCH | {"status": status}), (200, headers, LINES)]
        result = CliRunner().invoke(app, ["results", "batch_1", "--partial", "--json"])
        found = json.loads(result.stdout_bytes)
        assert [line["custom_id"] for line in found["data"]] == ["a", "b\u2028"]
        assert found["has_more"] is has_more
    api.answers = [ok(BATCH), (200, {}, LINES)]
    target = tmp_path / "out.jsonl"
    written = CliRunner().invoke(app, ["results", "batch_1", "-o", str(target), "--json"])
    assert json.loads(written.stdout) == {
        "batch_id": "batch_1",
        "output": str(target),
        "lines": 2,
        "is_complete": True,
    }
    assert target.read_bytes() == LINES
    api.answers = [ok(BATCH), (200, {}, b"")]
    assert (
        json.loads(CliRunner().invoke(app, ["results", "batch_1", "--json"]).stdout)["data"] == []
    )
