"""The commands as a user runs them, against a real `xalen-batch up`."""

import json
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.e2e.processes import COMMAND, System, environment, hear_ctrl_c, run, wait_until
from tests.factories import chat_line, jsonl, rerank_line
from tests.unit.cli.fake_api import serving

TIMEOUT = 60
TEMPLATE = str(ROOT / "examples/nightly-tickets.template.jsonl")
REFUSED: dict[str, Any] = {"metadata": {"simulate": "status=400"}}


def slow(seconds: int) -> dict[str, Any]:
    """The fields that make the simulated model answer after `seconds`."""
    return {"metadata": {"simulate": f"slow={seconds}000"}}


class Cli:
    """Runs commands in a folder of its own, with the running system's credentials."""

    def __init__(self, system: System, folder: Path) -> None:
        self.folder = folder
        self.base_url = system.base_url
        self.env = environment(data_dir=system.data_dir) | {"NO_COLOR": "1"}

    def with_key(self, secret: str) -> dict[str, str]:
        """The variables of another key of this system."""
        return {"XALEN_BASE_URL": self.base_url, "XALEN_API_KEY": secret}

    def __call__(
        self, *arguments: str, stdin: bytes | None = None, **extra: str
    ) -> subprocess.CompletedProcess[bytes]:
        return run(
            *arguments,
            cwd=self.folder,
            env=self.env | extra,
            input=stdin or b"",
            timeout=TIMEOUT,
        )

    def json(self, *arguments: str) -> Any:
        done = self(*arguments, "--json")
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def file(self, lines: Sequence[dict[str, Any]], name: str = "in.jsonl") -> str:
        (self.folder / name).write_bytes(jsonl(lines))
        return name

    def submit(self, lines: Sequence[dict[str, Any]], *options: str) -> str:
        done = self("submit", self.file(lines), *options)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def lines(self, name: str) -> list[str]:
        """The custom_ids in a results file."""
        return [
            json.loads(line)["custom_id"] for line in (self.folder / name).read_bytes().splitlines()
        ]


@pytest.fixture
def cli(running_system: System, tmp_path: Path) -> Cli:
    return Cli(running_system, tmp_path)


def test_run_ends_with_results_in_order_and_an_invoice(cli: Cli) -> None:
    done = cli("run", cli.file([chat_line(f"ticket-{n}") for n in range(25)]))
    assert done.returncode == 0, done.stderr.decode()
    assert cli.lines("in.results.jsonl") == [f"ticket-{n}" for n in range(25)]
    assert not (cli.folder / "in.errors.jsonl").exists()
    for text in (b"mistral-small-3-1", b"Batch discount", b"USD", b"test mode, not payable"):
        assert text in done.stdout
    assert b"25 of 25 lines succeeded" in done.stderr


def test_run_with_failed_lines_exits_3_and_writes_them_beside(cli: Cli) -> None:
    done = cli("run", cli.file([chat_line("good"), chat_line("bad", **REFUSED)]), "-o", "out.jsonl")
    assert done.returncode == 3
    assert (cli.lines("out.jsonl"), cli.lines("out.errors.jsonl")) == (["good"], ["bad"])


def test_what_run_leaves_is_of_its_own_run(cli: Cli) -> None:
    assert cli("run", cli.file([chat_line("good"), chat_line("bad", **REFUSED)])).returncode == 3
    assert cli("run", cli.file([chat_line("better")])).returncode == 0
    assert cli.lines("in.results.jsonl") == ["better"]
    assert not (cli.folder / "in.errors.jsonl").exists()
    failed = cli("run", cli.file([chat_line("bad", **REFUSED)]))
    assert failed.returncode == 3
    assert b"in.results.jsonl is from an earlier run" in failed.stderr
    assert (cli.lines("in.results.jsonl"), cli.lines("in.errors.jsonl")) == (["better"], ["bad"])


def test_a_key_without_the_scope_billing_still_runs_to_success(cli: Cli) -> None:
    made = cli.json(
        "keys", "create", "--account", "no-billing", "--create-account", "--scopes", "submit,read"
    )
    done = cli("run", cli.file([chat_line("a")]), **cli.with_key(made["secret"]))
    assert done.returncode == 0, done.stderr.decode()
    assert b"invoice: not shown" in done.stderr


def test_run_prints_batch_and_invoice_as_json(cli: Cli) -> None:
    found = cli.json("run", cli.file([rerank_line("a")]), "--metadata", "job=nightly")
    assert found["batch"]["metadata"] == {"job": "nightly"}
    assert found["batch"]["endpoint"] == "/v1/rerank"
    assert isinstance(found["invoice"]["total"], str)


def test_run_works_between_pipes(cli: Cli) -> None:
    done = cli("run", "-", "-o", "-", stdin=jsonl([chat_line("a"), chat_line("b")]))
    assert done.returncode == 0
    assert [json.loads(line)["custom_id"] for line in done.stdout.splitlines()] == ["a", "b"]
    assert b"Invoice inv_" in done.stderr


def test_submit_watch_show_results_and_invoice_go_together(cli: Cli) -> None:
    batch_id = cli.submit(
        [chat_line("good"), chat_line("bad", **REFUSED)], "--window", "7d", "--metadata", "a=b"
    )
    assert cli("watch", batch_id).returncode == 3
    shown = cli.json("show", batch_id)
    assert (shown["status"], shown["completion_window"], shown["metadata"]) == (
        "completed",
        "7d",
        {"a": "b"},
    )
    assert batch_id in cli("show", batch_id).stdout.decode()
    assert json.loads(cli("results", batch_id).stdout)["custom_id"] == "good"
    assert cli("results", batch_id, "--errors", "-o", "errors.jsonl").returncode == 0
    assert cli.lines("errors.jsonl") == ["bad"]
    invoice = cli.json("invoice", batch_id)
    assert [line["kind"] for line in invoice["lines"]] == [
        "usage",
        "usage",
        "discount",
        "not_billed",
    ]
    assert invoice["total"].encode() in cli("invoice", batch_id).stdout


def test_list_shows_the_newest_first_and_filters_by_status(cli: Cli) -> None:
    first, second = (cli.json("run", cli.file([chat_line("a")]))["batch"]["id"] for _ in range(2))
    ids = [batch["id"] for batch in cli.json("list")["data"]]
    assert ids.index(second) < ids.index(first)
    assert second.encode() in cli("list", "--limit", "1").stdout
    assert cli.json("list", "--status", "failed", "--limit", "1000")["data"] == []


def _done(cli: Cli, batch_id: str) -> int:
    counts = cli.json("show", batch_id)["request_counts"]
    return int(counts["completed"] + counts["failed"] + counts["cancelled"] + counts["expired"])


def test_what_a_running_batch_has_is_read_and_a_cancel_keeps_it(cli: Cli) -> None:
    batch_id = cli.submit(
        [chat_line("quick-1"), chat_line("quick-2"), chat_line("slow", **slow(30))]
    )
    waited = cli("watch", batch_id, "--timeout", "0.1")
    assert waited.returncode == 5
    assert b"The batch goes on" in waited.stderr
    assert cli("results", batch_id).returncode == 1
    wait_until(lambda: _done(cli, batch_id) >= 2)
    partial = cli("results", batch_id, "--partial")
    assert [json.loads(line)["custom_id"] for line in partial.stdout.splitlines()] == [
        "quick-1",
        "quick-2",
    ]
    assert b"2 lines that succeeded so far, of 3 in the batch" in partial.stderr
    assert cli("invoice", batch_id).returncode == 1
    assert cli("cancel", batch_id).returncode == 0
    assert cli("watch", batch_id).returncode == 3
    assert cli.json("show", batch_id)["status"] == "cancelled"
    again = cli("cancel", batch_id)
    assert again.returncode == 0
    assert (
        f"is cancelled. Finished lines are kept and billed; `xalen-batch results {batch_id}`"
        " downloads" in again.stderr.decode()
    )
    refused = cli("cancel", f"batch_{'0' * 32}")
    assert refused.returncode == 1
    assert b"request req_" in refused.stderr


def test_ctrl_c_leaves_the_batch_running(cli: Cli) -> None:
    file = cli.file([chat_line("slow", **slow(8))])
    process = subprocess.Popen(
        [COMMAND, "run", file],
        cwd=cli.folder,
        env=cli.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hear_ctrl_c,
    )
    assert process.stderr is not None
    submitted = process.stderr.readline().decode()
    batch_id = submitted.rstrip(".\n").rpartition(" ")[2]
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert f"The batch goes on; `xalen-batch watch {batch_id}` resumes." in said.decode()
    assert not (cli.folder / "in.results.jsonl").exists()
    assert cli("watch", batch_id).returncode == 0


def test_a_statement_sums_the_month(cli: Cli) -> None:
    batch_id = cli.json("run", cli.file([chat_line("a")]))["batch"]["id"]
    statement = cli.json("statement")
    assert statement["status"] == "draft"
    assert any(batch_id in line["description"] for line in statement["lines"])
    page = cli.json("statement", "--limit", "1")
    assert (page["lines"], page["has_more"]) == (statement["lines"][:1], True)
    shown = cli("statement", "--limit", "1")
    assert b"Without --limit" in shown.stderr
    assert cli("statement", "--limit", "1001").returncode == 2
    assert cli("statement", "2026-13").returncode == 2


def test_validate_agrees_with_the_server(cli: Cli) -> None:
    file = cli.file([chat_line("a"), chat_line("a")])
    assert cli("validate", file).returncode == 1
    assert cli("run", file).returncode == 1
    assert cli("validate", cli.file([chat_line("a")])).returncode == 0


def test_live_and_test_mode_never_meet(cli: Cli) -> None:
    done = cli("run", cli.file([chat_line("a")]), "--live", "--json")
    found = json.loads(done.stdout)
    assert found["invoice"]["livemode"] is True
    assert cli("show", found["batch"]["id"]).returncode == 1
    assert cli("show", found["batch"]["id"], "--live").returncode == 0
    assert b"not payable" not in cli("invoice", found["batch"]["id"], "--live").stdout


def test_a_key_is_made_used_and_revoked(cli: Cli) -> None:
    made = cli.json(
        "keys",
        "create",
        "--account",
        "acme",
        "--create-account",
        "--name",
        "nightly",
        "--scopes",
        "read",
    )
    assert cli("list", "--base-url", cli.base_url, "--api-key", made["secret"]).returncode == 0
    assert cli("submit", cli.file([chat_line("a")]), **cli.with_key(made["secret"])).returncode == 4
    listed = cli("keys", "list").stdout.decode()
    assert made["id"] in listed
    assert made["secret"] not in listed
    assert cli("keys", "revoke", made["id"]).returncode == 0
    assert cli("list", "--base-url", cli.base_url, "--api-key", made["secret"]).returncode == 4


def test_models_and_prices_are_listed(cli: Cli) -> None:
    assert [model["id"] for model in cli.json("models")["data"]] == [
        "mistral-small-3-1",
        "bge-reranker-v2",
        "bge-m3",
    ]
    (reranker,) = [row for row in cli.json("prices")["data"] if row["model"] == "bge-reranker-v2"]
    assert (reranker["input"], reranker["output"]) == ("0.003", None)
    assert {price["model"] for price in cli.json("prices", "list")["data"]} == {
        "mistral-small-3-1",
        "bge-reranker-v2",
        "bge-m3",
    }
    # Prices in force have no end.
    assert re.search(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC *\n", cli("prices", "list").stdout)
    assert cli("prices", "sync").returncode == 0


def test_everything_reconciles(cli: Cli) -> None:
    assert (
        cli.json("run", cli.file([chat_line("a"), rerank_chat("b")]))["batch"]["status"]
        == "completed"
    )
    done = cli("reconcile")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"Everything agrees.\n")


def rerank_chat(custom_id: str) -> dict[str, Any]:
    """A request to the reranker by the chat endpoint."""
    return chat_line(
        custom_id,
        json.dumps({"query": "returns", "documents": ["a", "b"]}),
        model="bge-reranker-v2",
    )


def test_a_wrong_key_exits_4_and_no_server_exits_1(cli: Cli) -> None:
    assert cli("list", "--base-url", cli.base_url, "--api-key", "xln_test_wrong").returncode == 4
    nobody = cli("list", "--base-url", "http://127.0.0.1:9/v1", "--api-key", "xln_test_wrong")
    assert nobody.returncode == 1
    assert nobody.stderr.startswith(b"Error: No answer from http://127.0.0.1:9")


def test_a_saved_key_and_a_file_go_to_no_stranger(cli: Cli) -> None:
    file = cli.file([chat_line("a")])
    with serving() as stranger:
        stranger.answers = [(200, {}, b"{}")] * 10
        # The address and key of another service belong to its own clients.
        done = cli(
            "run", file, OPENAI_BASE_URL=stranger.base_url, OPENAI_API_KEY="sk-of-another-service"
        )
        assert done.returncode == 0, done.stderr.decode()
        for command in (["run", file], ["list"], ["submit", file, "--live"]):
            refused = cli(*command, OPENAI_BASE_URL=stranger.base_url)
            assert refused.returncode == 4
            assert b"Error: OPENAI_BASE_URL decides where the API is" in refused.stderr
        assert cli("list", "--base-url", stranger.base_url).returncode == 4
        assert stranger.requests == []


def schedule(cli: Cli, *options: str) -> str:
    """A schedule for every night in Berlin; its id."""
    done = cli(
        "schedules",
        "create",
        "tickets",
        "--cron",
        "30 2 * * *",
        "--timezone",
        "Europe/Berlin",
        *options,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"At 02:30 every day (Europe/Berlin)." in done.stderr
    assert len(re.findall(rb" 02:30 \+0[12]:00  ", done.stderr)) >= 2
    return done.stdout.decode().strip()


def test_a_template_is_tried_now_and_filled_in_for_nights_that_were(cli: Cli) -> None:
    id = schedule(cli, "--template", TEMPLATE)
    tried = cli("schedules", "run", id, "--wait")
    assert tried.returncode == 0, tried.stderr.decode()
    batch_id = tried.stdout.decode().strip()
    assert [batch["id"] for batch in cli.json("list", "--schedule", id)["data"]] == [batch_id]
    assert f"Schedule tickets ({id})".encode() in cli("invoice", batch_id).stdout
    assert b'"custom_id":"auto-reply-billing-' in cli("results", batch_id).stdout

    made = cli.json("schedules", "backfill", id, "--from", "2026-11-01", "--to", "2026-11-04")[
        "data"
    ]
    assert [run["scheduled_local"][:10] for run in made] == [
        "2026-11-01",
        "2026-11-02",
        "2026-11-03",
    ]
    wait_until(lambda: len(cli.json("schedules", "runs", id, "--state", "succeeded")["data"]) == 4)
    runs = {run["scheduled_local"][:10]: run for run in cli.json("schedules", "runs", id)["data"]}
    assert (
        b'"custom_id":"auto-reply-refund-2026-11-01"'
        in cli("results", runs["2026-11-01"]["batch_id"]).stdout
    )
    nothing = cli("schedules", "backfill", id, "--from", "2026-11-01", "--to", "2026-11-04")
    assert (nothing.returncode, nothing.stdout) == (0, b"")
    assert (
        b"every time between 2026-11-01T00:00:00 and 2026-11-04T00:00:00 has run already"
        in nothing.stderr
    )
    again = cli("schedules", "run", id, "--for", "2026-11-02T02:30", "--wait")
    assert b"with the dates of Mon 2026-11-02 02:30 +01:00" in again.stderr
    assert (
        b'"custom_id":"auto-reply-refund-2026-11-02"'
        in cli("results", again.stdout.decode().strip()).stdout
    )
    assert b"Mon 2026-11-02 02:30 +01:00" in cli("schedules", "runs", id, "--limit", "1").stdout

    # A run ends a moment after its batch, for which `--wait` waits.
    wait_until(lambda: len(cli.json("schedules", "runs", id, "--state", "succeeded")["data"]) == 5)
    shown = cli("schedules", "list").stdout.decode()
    assert re.search(rf"{id} .* ✓✓✓✓✓ +succeeded +active", shown)


def test_requests_are_added_all_day_and_run_together(cli: Cli) -> None:
    id = schedule(cli, "--inbox", "--endpoint", "/v1/chat/completions")
    lines = jsonl([chat_line(f"ticket-{n}") for n in range(1_500)])
    added = cli("schedules", "add", id, "-", stdin=lines)
    assert added.returncode == 0, added.stderr.decode()
    assert b"1,500 requests accepted; 1,500 pending. They run in" in added.stderr
    again = cli.json("schedules", "add", id, cli.file([chat_line("ticket-7"), chat_line("new")]))
    assert (again["accepted"], again["known"], again["pending"]) == (1, 1, 1_501)
    refused = cli(
        "schedules", "add", id, cli.file([chat_line("good"), chat_line("bad", model="none")])
    )
    assert (refused.returncode, cli.json("schedules", "show", id)["inbox"]["pending"]) == (1, 1_501)
    assert b"in.jsonl:2 (custom_id 'bad')" in refused.stderr

    found = cli.json("schedules", "run", id, "--wait")
    assert found["batch"]["request_counts"] == {
        "total": 1_501,
        "completed": 1_501,
        "failed": 0,
        "cancelled": 0,
        "expired": 0,
    }
    empty = cli("schedules", "run", id, "--wait")
    assert (empty.returncode, empty.stdout) == (3, b"")
    assert b"No request had arrived" in empty.stderr


def test_a_key_that_may_only_submit_adds_to_an_inbox(cli: Cli) -> None:
    secret = cli.json(
        "keys", "create", "--account", "inbox", "--create-account", "--scopes", "submit"
    )["secret"]
    done = cli(
        "schedules",
        "create",
        "night",
        "--cron",
        "@daily",
        "--inbox",
        "--endpoint",
        "/v1/rerank",
        **cli.with_key(secret),
    )
    assert done.returncode == 0, done.stderr.decode()
    added = cli(
        "schedules",
        "add",
        done.stdout.decode().strip(),
        cli.file([rerank_line("a")]),
        **cli.with_key(secret),
    )
    assert added.returncode == 0, added.stderr.decode()
    assert added.stderr == b"1 request accepted.\n"


def test_a_schedule_is_edited_paused_resumed_and_deleted(cli: Cli) -> None:
    id = schedule(
        cli,
        "--file",
        cli.file([chat_line("a")]),
        "--ends",
        "2027-11-01",
        "--execution-window",
        "22:00-06:00",
    )
    before = cli.json("schedules", "show", id)
    changed = cli.json(
        "schedules",
        "edit",
        id,
        "--cron",
        "0 4 * * *",
        "--timezone",
        "Asia/Kathmandu",
        "--clear",
        "ends",
        "--jitter",
        "60",
    )
    assert (changed["description"], changed["ends_at"], changed["jitter"]) == (
        "At 04:00 every day",
        None,
        60,
    )
    assert (changed["input_file_id"], changed["execution_window"]["timezone"]) == (
        before["input_file_id"],
        "Asia/Kathmandu",
    )
    assert cli.json("schedules", "preview", id, "--count", "2")["fires"][0]["local"].endswith(
        "T04:00:00+05:45"
    )

    assert (
        cli.json("schedules", "pause", id, "--note", "the shop is closed")["pause_note"]
        == "the shop is closed"
    )
    assert id in [
        found["id"]
        for found in cli.json("schedules", "list", "--status", "paused", "--limit", "500")["data"]
    ]
    assert b"the shop is closed" in cli("schedules", "show", id).stdout
    assert cli.json("schedules", "resume", id)["status"] == "active"
    batch_id = cli.json("schedules", "run", id)["batch_id"]
    assert cli("schedules", "delete", id).returncode == 0
    assert cli("schedules", "show", id).returncode == 1
    assert [run["batch_id"] for run in cli.json("schedules", "runs", id)["data"]] == [batch_id]
    assert cli.json("show", batch_id)["schedule_id"] == id


def test_what_no_schedule_can_be_is_refused_and_leaves_nothing(cli: Cli) -> None:
    often = cli(
        "schedules",
        "create",
        "often",
        "--cron",
        "* * * * *",
        "--timezone",
        "UTC",
        "--file",
        cli.file([chat_line("a")]),
    )
    typo = cli(
        "schedules",
        "create",
        "typo",
        "--cron",
        "@daily",
        "--template",
        cli.file([chat_line("{{scheduled_dat}}")]),
    )
    assert [(done.returncode, done.stdout) for done in (often, typo)] == [(1, b""), (1, b"")]
    assert b"the least is 5 minutes" in often.stderr
    assert b"line 1 of in.jsonl" in typo.stderr
    assert not {"often", "typo"} & {
        found["name"] for found in cli.json("schedules", "list", "--limit", "500")["data"]
    }
