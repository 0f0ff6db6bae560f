"""The oracle finds errors: each test adds one violation to a good run, and the oracle names it."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from random import Random

import psycopg
import pytest

from tests.chaos import leftovers, live, oracle, sealed, told, uploaded
from tests.chaos.campaign import Campaign
from tests.chaos.drive import Delivery
from tests.chaos.oracle import Calls
from tests.chaos.plan import Plan, orders
from tests.chaos.run import Run
from tests.chaos.system import SHORT, System
from xalen_batch import ids

SEED = 9001
RUN = f"run-{SEED}"
LEDGER = f"(SELECT id FROM batches WHERE ledger IS NOT NULL AND metadata ->> 'run' = '{RUN}')"


@dataclass
class Evidence:
    """The evidence of a run, for a test to change. `connection` is rolled back."""

    deliveries: list[Delivery]
    calls: Calls
    connection: psycopg.Connection
    system: System
    live: live.Delivered
    told: told.Told

    def wrong_calls(self, *, may_lose: bool = False) -> list[str]:
        return [*live.wrong(self.connection, RUN, self.live, self.calls, may_lose=may_lose)]

    @property
    def wrong(self) -> list[str]:
        return [
            *oracle.wrong(self.connection, RUN, self.deliveries, self.calls),
            *uploaded.wrong(self.system, self.connection, RUN, self.deliveries),
            *told.wrong(self.connection, RUN, self.told),
        ]

    def of(self, name: str) -> Delivery:
        return next(delivery for delivery in self.deliveries if delivery.order.name == name)

    def change(self, statement: str) -> None:
        """Change rows in the database, with triggers and foreign keys switched off.

        `{chat}` is the id of the batch of that name, `{ledger}` that of the live calls' ledger.
        """
        batch_id = self.of("chat").batch["id"].removeprefix("batch_")
        filled = statement.replace("{chat}", f"'{batch_id}'").replace("{ledger}", LEDGER)
        changed = self.connection.execute(filled)  # type: ignore[arg-type]
        assert changed.rowcount > 0


@pytest.fixture(scope="module")
def calm(campaign: Campaign) -> tuple[System, Run]:
    """A run without faults."""
    system = campaign.system(SHORT)
    run = Run(system, Plan(SEED, tuple(orders(SEED, Random(SEED)))), keeps_rows=True)
    assert run.run().wrong == []
    return system, run


@pytest.fixture
def evidence(calm: tuple[System, Run]) -> Iterator[Evidence]:
    system, run = calm
    with system.connect() as connection:
        connection.execute("SET session_replication_role = replica")
        yield Evidence(
            deepcopy(run.deliveries),
            deepcopy(run.calls),
            connection,
            system,
            deepcopy(run.live),
            deepcopy(run.told),
        )
        connection.rollback()


def test_a_run_that_went_well_has_nothing_wrong(evidence: Evidence) -> None:
    assert evidence.wrong == []
    assert evidence.wrong_calls() == []
    assert len(evidence.live.answered) == len(evidence.live.asked) > 5
    assert [*leftovers.in_tables(evidence.connection)] == []
    assert oracle.lost_and_doubled(evidence.deliveries) == (0, 0)
    assert sum(len(delivery.errors) for delivery in evidence.deliveries) > 0
    assert evidence.of("mixed").merged
    assert len(evidence.told.accepted) > 2 * len(evidence.deliveries)


def lose_a_line(chat: Delivery) -> None:
    del chat.output[3]


def double_a_line(chat: Delivery) -> None:
    chat.output.append(chat.output[-1])


def deliver_in_both_files(chat: Delivery) -> None:
    chat.errors.append(
        {
            "custom_id": chat.errors[-1]["custom_id"],
            "response": None,
            "error": {"code": "worker_lost"},
        }
    )


def swap_lines(chat: Delivery) -> None:
    chat.output[0], chat.output[1] = chat.output[1], chat.output[0]


def mix_up_answers(chat: Delivery) -> None:
    first, second = chat.output[0]["response"], chat.output[1]["response"]
    first["body"], second["body"] = second["body"], first["body"]


def miscount(chat: Delivery) -> None:
    chat.batch["request_counts"]["completed"] += 1


def overcharge(chat: Delivery) -> None:
    chat.invoice["total"] = "1.00"


def answer_with_500(chat: Delivery) -> None:
    chat.unexpected.append("POST /v1/batches: 500 Something failed on our side")


def fail_without_a_reason(chat: Delivery) -> None:
    line = chat.output.pop()
    chat.errors.append(
        {"custom_id": line["custom_id"], "response": None, "error": {"code": "who_knows"}}
    )


def change_a_line(chat: Delivery) -> None:
    chat.order = replace(chat.order, lines=(chat.order.lines[1], *chat.order.lines[1:]))


def never_end(chat: Delivery) -> None:
    chat.ended_at = None


@pytest.mark.parametrize(
    ("doctor", "words"),
    [
        (lose_a_line, "1 missing of the lines of the files: run-9001-chat-"),
        (double_a_line, "1 too many of the lines of the files"),
        (deliver_in_both_files, "1 too many of the lines of the files"),
        (swap_lines, "the output file is not in the order of the input"),
        (mix_up_answers, "has the answer of run-9001-chat-"),
        (miscount, "the counts that the client was told are"),
        (overcharge, "the client was billed 1.00"),
        (answer_with_500, "the client was told POST /v1/batches: 500"),
        (fail_without_a_reason, "failed with who_knows"),
        (change_a_line, "its input file is not the lines that it was sent"),
        (never_end, "the batch did not end"),
    ],
)
def test_what_a_client_should_not_be_given_is_named(
    evidence: Evidence, doctor: Callable[[Delivery], None], words: str
) -> None:
    doctor(evidence.of("chat"))
    assert [found for found in evidence.wrong if found.startswith("chat") and words in found], (
        evidence.wrong
    )


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            "DELETE FROM results WHERE batch_id = {chat} AND line_no = 5",
            "1 missing of the results on record",
        ),
        (
            (
                "INSERT INTO results (batch_id, line_no, model, custom_id, status_code, amount)"
                " SELECT batch_id, 100000, model, custom_id, status_code, amount FROM results WHERE"
                " batch_id = {chat} AND line_no = 1"
            ),
            "1 too many of the results on record",
        ),
        (
            "UPDATE results SET amount = 2 * amount WHERE batch_id = {chat} AND line_no < 9",
            "was charged",
        ),
        (
            "UPDATE batches SET completed = completed - 1 WHERE id = {chat}",
            "the counts on record are",
        ),
        (
            "UPDATE tasks SET failed = failed + 1, lines = lines + 1 WHERE batch_id = {chat}",
            "the counts of its tasks are",
        ),
        ("UPDATE batches SET status = 'expired' WHERE id = {chat}", "its status is expired"),
        (
            "UPDATE invoices SET total = total + 0.000001 WHERE batch_id = {chat}",
            "its invoices are",
        ),
        ("DELETE FROM invoices WHERE batch_id = {chat}", "its invoices are []"),
        (
            (
                "INSERT INTO batches SELECT (jsonb_populate_record(batches,"
                " jsonb_build_object('id', gen_random_uuid(), 'run_id', NULL))).* FROM batches"
                " WHERE id = {chat}"
            ),
            "one Idempotency-Key made 2 batches",
        ),
        (
            (
                "INSERT INTO files SELECT (jsonb_populate_record(files, jsonb_build_object('id',"
                " gen_random_uuid()))).* FROM files WHERE id = (SELECT input_file_id FROM batches"
                " WHERE id = {chat})"
            ),
            "one Idempotency-Key made 2 files",
        ),
    ],
)
def test_what_should_not_be_on_record_is_named(
    evidence: Evidence, statement: str, words: str
) -> None:
    evidence.change(statement)
    assert [found for found in evidence.wrong if found.startswith("chat") and words in found], (
        evidence.wrong
    )


def test_an_answer_that_the_model_never_gave_is_named(evidence: Evidence) -> None:
    custom_id = evidence.of("rerank").output[0]["custom_id"]
    del evidence.calls.answered[custom_id]
    assert evidence.wrong == [f"rerank: {custom_id} has an answer that the model never gave"]


def test_an_answer_that_came_twice_is_counted_and_allowed(evidence: Evidence) -> None:
    before = evidence.calls.repeated
    evidence.calls.answered[evidence.of("rerank").output[0]["custom_id"]] += 2
    assert (evidence.calls.repeated - before, evidence.wrong) == (2, [])


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            "UPDATE batches SET lease_until = now() WHERE id = {chat}",
            "1 leases of batches are left",
        ),
        (
            "UPDATE batches SET status = 'in_progress' WHERE id = {chat}",
            "1 batches that have not ended are left",
        ),
        (
            (
                "UPDATE tasks SET state = 'running', lease_until = now() WHERE batch_id = {chat}"
                " AND seq = 0"
            ),
            "1 leases of tasks are left",
        ),
        (
            "UPDATE tasks SET state = 'pending' WHERE batch_id = {chat} AND seq = 0",
            "1 tasks that are not done are left",
        ),
    ],
)
def test_a_lease_or_a_task_that_is_left_is_named(
    evidence: Evidence, statement: str, words: str
) -> None:
    evidence.change(statement)
    assert words in [*leftovers.in_tables(evidence.connection)]


def test_bytes_of_nobody_are_named_when_the_sweep_leaves_them(
    evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "SWEPT_WITHIN", 6.0)
    swept, left = (
        evidence.system.files / "input" / ids.new().hex,
        evidence.system.files / "input" / "whose",
    )
    for path in (swept, left):
        path.write_bytes(b"{}")
    try:
        assert leftovers.left(evidence.system) == [
            "whose in storage belongs to no file, and the sweep leaves it"
        ]
        assert not swept.exists()
    finally:
        left.unlink()


def test_half_an_upload_is_named(evidence: Evidence) -> None:
    whole = next(path for path in (evidence.system.files / "input").iterdir())
    content = whole.read_bytes()
    whole.write_bytes(content[:-1])
    try:
        assert leftovers.left(evidence.system) == [
            f"the upload {whole.name} has {len(content) - 1} of its {len(content)} bytes"
        ]
    finally:
        whole.write_bytes(content)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            (
                "INSERT INTO results (batch_id, line_no, model, custom_id, status_code, amount)"
                " SELECT batch_id, 100000, model, custom_id, status_code, amount FROM results WHERE"
                " batch_id = {ledger} AND line_no = 1"
            ),
            "is billed 2 times",
        ),
        ("DELETE FROM results WHERE batch_id = {ledger} AND line_no = 1", "are on no ledger"),
        (
            "UPDATE results SET custom_id = 'x' WHERE batch_id = {ledger} AND line_no = 1",
            "a ledger has a call that no model saw",
        ),
        ("UPDATE results SET amount = 1 WHERE batch_id = {ledger} AND line_no = 1", "was charged"),
        (
            "UPDATE results SET input_tokens = 1 WHERE batch_id = {ledger} AND line_no = 1",
            "and the client was told",
        ),
        ("UPDATE batches SET total = total + 1 WHERE id = {ledger}", "a ledger of"),
        ("UPDATE tasks SET lines = lines + 1 WHERE batch_id = {ledger}", "a ledger of"),
        ("UPDATE invoices SET total = 1 WHERE batch_id = {ledger}", "a ledger is invoiced"),
    ],
)
def test_a_wrong_ledger_is_named(evidence: Evidence, statement: str, words: str) -> None:
    evidence.change(statement)
    assert [found for found in evidence.wrong_calls() if words in found]


def test_a_killed_api_may_lose_a_call_and_bill_none_twice(evidence: Evidence) -> None:
    evidence.change("DELETE FROM results WHERE batch_id = {ledger} AND line_no = 1")
    assert not any("no ledger" in words for words in evidence.wrong_calls(may_lose=True))
    assert live.lost(evidence.connection, RUN, evidence.live, evidence.calls) == 1


@pytest.mark.parametrize(
    ("doctor", "words"),
    [
        (lambda mixed: mixed.merged.pop(), "1 missing of the merged lines"),
        (lambda mixed: mixed.merged.append(mixed.merged[-1]), "1 too many of the merged lines"),
        (
            lambda mixed: mixed.merged.reverse(),
            "the merged lines are not in the order of the input",
        ),
        (lambda mixed: mixed.merged[0].update(response=None), "is not merged with its last result"),
    ],
)
def test_wrong_merged_results_are_named(
    evidence: Evidence, doctor: Callable[[Delivery], None], words: str
) -> None:
    doctor(evidence.of("mixed"))
    assert [found for found in evidence.wrong if found.startswith("mixed") and words in found]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            "UPDATE uploads SET status = 'expired' WHERE file_id IS NOT NULL",
            "an upload of run-9001-mixed.jsonl is expired, and its file is",
        ),
        (
            "UPDATE files SET sha256 = NULL WHERE filename = 'run-9001-mixed.jsonl'",
            "an upload of run-9001-mixed.jsonl is a file with other bytes",
        ),
        (
            "UPDATE files SET filename = 'run-9001-mixed.jsonl' WHERE filename LIKE '%_retry.jsonl'",
            "mixed: one Idempotency-Key made",
        ),
        (
            "UPDATE batches SET input_file_id = gen_random_uuid()",
            "files of `requests` belong to no batch",
        ),
        (
            "DELETE FROM events WHERE object_id = {chat}",
            "is completed, and has the events []",
        ),
        (
            (
                "INSERT INTO events (id, account_id, livemode, type, object_id) SELECT"
                " gen_random_uuid(), account_id, livemode, 'batch.failed', id FROM batches WHERE"
                " id = {chat}"
            ),
            "has the events ['batch.completed', 'batch.failed']",
        ),
        ("DELETE FROM events WHERE type = 'xalen.invoice.issued'", "has 0 events"),
        ("UPDATE webhook_deliveries SET state = 'failed'", ", batch.completed, is failed"),
    ],
)
def test_wrong_uploads_and_events_are_named(evidence: Evidence, statement: str, words: str) -> None:
    evidence.change(statement)
    assert [found for found in evidence.wrong if words in found], evidence.wrong


def test_an_event_that_the_receiver_did_not_get_is_named(evidence: Evidence) -> None:
    lost, mixed_up = list(evidence.told.accepted)[:2]
    del evidence.told.accepted[lost]
    evidence.told.events[mixed_up]["type"] = "batch.imagined"
    words = evidence.wrong
    assert len(words) == 2
    assert any(found.startswith(f"the receiver never accepted {lost}") for found in words)
    assert any(found.startswith(f"{mixed_up} is") for found in words)


def test_an_event_that_came_twice_is_counted_and_allowed(evidence: Evidence) -> None:
    before = evidence.told.repeated
    evidence.told.accepted[next(iter(evidence.told.accepted))] += 2
    assert (evidence.told.repeated - before, evidence.wrong) == (2, [])


def test_a_delivery_with_another_signature_is_named(evidence: Evidence) -> None:
    evidence.told = told.read(evidence.system.told, 0, "whsec_bm90IHRoZSBzZWNyZXQ=")
    assert f"the signature of {evidence.told.unsigned[0]} is wrong" in evidence.wrong


def test_uploads_that_the_sweep_leaves_are_named(
    evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploaded, "SWEPT_WITHIN", 0.1)
    assert uploaded.left(evidence.connection, RUN)[0].endswith("that ended long ago are left")


def test_what_changed_when_rows_were_dropped_is_named(evidence: Evidence) -> None:
    chat = evidence.of("chat")
    chat.output[0]["response"]["body"] = {}
    chat.errors.pop()
    assert sealed.wrong(evidence.system, RUN, evidence.deliveries) == [
        "chat: the output file changed when it was sealed",
        "chat: the error file changed when it was sealed",
    ]
