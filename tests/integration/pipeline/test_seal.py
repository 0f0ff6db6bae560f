"""Seal: the bytes of downloads and the charges of lines are the same before and after."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from structlog.testing import capture_logs

from tests.billing import REFUSED, Ran, ended, running
from tests.conftest import as_owner
from tests.factories import CHAT_MODEL, RERANK_MODEL
from tests.integration.engines import bytes_of
from xalen_batch import db, files, ids, storage
from xalen_batch.accounts.accounts import Owner
from xalen_batch.backends.contract import Answered
from xalen_batch.billing import reconcile
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import Batch, File, Result, SealedLines
from xalen_batch.models.files import FilePart
from xalen_batch.pipeline import finalize, seal, sweeps
from xalen_batch.results import content, results
from xalen_batch.results.content import Stored
from xalen_batch.states import LineError
from xalen_batch.storage import frames

pytestmark = pytest.mark.usefixtures("database", "valkey")

LINES = [
    Ran(Usage(1_234, 567)),
    Ran(Answered(200, '{"text":"Grüße\u2028"}'.encode(), Usage(7, 9, counted=True))),
    Ran(Usage(1_234, 567, cached_tokens=10, reasoning_tokens=20)),
    Ran(Usage(5_000, 7), RERANK_MODEL),
    Ran(REFUSED),
    Ran(LineError.REQUEST_TIMEOUT),
    Ran(LineError.BATCH_EXPIRED),
]
COLUMNS = (
    "model, status_code, error_code, flag, input_tokens, cached_tokens, output_tokens,"
    " reasoning_tokens"
)
PARTS = ", ".join(f"part.{name}" for name in COLUMNS.split(", "))
ARRAYS = (
    "models, status_codes, error_codes, flags, input_tokens, cached_tokens, output_tokens,"
    " reasoning_tokens"
)


def again(batch: Batch) -> Batch:
    with db.transaction() as session:
        return session.get_one(Batch, batch.id)


def of(batch: Batch) -> dict[FilePart, File]:
    with db.transaction() as session:
        found = session.scalars(select(File).where(File.batch_id == batch.id)).all()
        return {FilePart(file.part or ""): file for file in found}


def contents(batch: Batch) -> dict[FilePart, bytes]:
    """What a download of each file gives now."""
    return {part: bytes_of(file) for part, file in of(batch).items()}


def rendered(batch: Batch) -> dict[FilePart, bytes]:
    """What the rows give."""
    return {part: b"".join(results.chunks(batch.id, part)) for part in of(batch)}


def sealed_columns(batch: Batch) -> list[Any]:
    with db.reading() as session:
        return list(
            session.execute(
                text(
                    f"SELECT coalesce(line_no, first_line + position - 1) AS line_no, {PARTS} FROM"
                    f" sealed_lines CROSS JOIN LATERAL unnest(line_nos, {ARRAYS}) WITH ORDINALITY AS"
                    f" part (line_no, {COLUMNS}, position) WHERE batch_id = :id ORDER BY 1"
                ),
                {"id": batch.id},
            ).mappings()
        )


def row_columns(batch: Batch) -> list[Any]:
    with db.reading() as session:
        return list(
            session.execute(
                text(
                    f"SELECT line_no, {COLUMNS} FROM results WHERE batch_id = :id ORDER BY line_no"
                ),
                {"id": batch.id},
            ).mappings()
        )


def stored() -> set[str]:
    return {key for key, _ in storage.listing("output")}


def let_leases_run_out() -> None:
    with db.transaction() as session:
        session.execute(update(Batch).values(lease_until=func.now() - timedelta(seconds=1)))


class TestSealed:
    def test_files_are_objects_with_the_bytes_that_rows_gave(self) -> None:
        batch = ended(LINES)
        before = contents(batch)
        assert set(before) == {FilePart.OUTPUT, FilePart.ERROR}
        seal.run()
        assert contents(batch) == before == rendered(batch)
        for part, file in of(batch).items():
            assert file.sha256 == hashlib.sha256(before[part]).digest()
            reader = frames.Reader(storage.output_key(file.id))
            assert (reader.size, reader.stored_size) == (file.size, file.stored_bytes)
            found = content.of(file)
            assert isinstance(found, Stored)
            assert found.zstd is not None
            packed = b"".join(found.zstd.chunks())
            assert len(packed) == found.zstd.size < reader.stored_size
            assert frames.zstd.decompress(packed) == before[part]
            assert b"".join(found.chunks(3, 9)) == before[part][3:9]
        sealed = again(batch)
        assert sealed.sealed_at is not None
        assert sealed.lease_until is None

    def test_usage_and_charges_of_lines_are_columns(self) -> None:
        batch = ended(LINES)
        seal.run()
        columns = [
            {name: row[name] for name in ("line_no", *COLUMNS.split(", "))}
            for row in sealed_columns(batch)
        ]
        assert columns == row_columns(batch)
        assert len(columns) == len(LINES)
        with db.transaction() as session:
            (row,) = session.scalars(select(SealedLines))
        # No line has a gap before it, and all were charged by price.
        assert (row.line_nos, row.amounts) == (None, None)

    def test_numbers_with_gaps_and_charges_beside_the_price_are_kept(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(seal, "LINES_AT_ONCE", 3)
        batch = ended(LINES)
        with as_owner() as session:
            session.execute(text("SET LOCAL session_replication_role = replica"))
            # Blank lines of the input have numbers and no result.
            session.execute(text("UPDATE results SET line_no = line_no + 2 WHERE line_no > 5"))
            session.execute(text("UPDATE results SET amount = amount + 1 WHERE line_no = 1"))
            session.execute(text("UPDATE invoices SET total = total + 1"))
        seal._pack([batch])
        with db.transaction() as session:
            rows = session.scalars(select(SealedLines).order_by(SealedLines.first_line)).all()
            amounts = session.scalars(select(Result.amount).order_by(Result.line_no)).all()
        assert [row.line_nos for row in rows] == [None, [4, 5, 8], None]
        assert [row.first_line for row in rows] == [1, 4, 9]
        assert rows[0].amounts == list(amounts[:3])
        assert rows[1].amounts is rows[2].amounts is None
        assert [row["line_no"] for row in sealed_columns(batch)] == [1, 2, 3, 4, 5, 8, 9]

    def test_a_price_of_cached_input_is_a_price(self) -> None:
        """Lines that were charged by it need no amounts; a line that was not keeps the batch."""
        prices = {
            CHAT_MODEL: {"input": "0.02", "cached_input": "0.002", "output": "0.04"},
            RERANK_MODEL: {"input": "0.003"},
        }
        batch, beside = (
            ended(LINES, price_snapshot=prices),
            ended(LINES, price_snapshot=prices, old=[3]),
        )
        seal._pack([batch, beside])
        with db.transaction() as session:
            amounts = {row.batch_id: row.amounts for row in session.scalars(select(SealedLines))}
        assert amounts[batch.id] is None
        assert amounts[beside.id] is not None

    def test_the_books_agree_from_the_columns_alone(self) -> None:
        prices = {CHAT_MODEL: {"input": "0.02", "cached_input": "0.002", "output": "0.04"}}
        cached = ended([line for line in LINES if line.model == CHAT_MODEL], price_snapshot=prices)
        batches = [ended(LINES), ended([Ran(REFUSED)]), ended([]), cached]
        seal.run()
        assert all(again(batch).sealed_at for batch in batches)
        with as_owner() as session:
            session.execute(text("SET LOCAL session_replication_role = replica"))
            session.execute(text("DELETE FROM results"))
        assert list(reconcile.differences()) == []

    @pytest.mark.parametrize(
        ("corruption", "what"),
        [
            ("models = array_fill('x'::text, ARRAY[lines::int])", "total of the invoice, by"),
            ("input_tokens[1] = 1235", "input_tokens"),
            ("status_codes[1] = 500", "completed"),
            ("error_codes[7] = 'x'", "expired"),
            ("amounts = array_fill(1::numeric, ARRAY[lines::int])", "charge of line 5"),
        ],
    )
    def test_a_change_of_a_column_is_found(self, corruption: str, what: str) -> None:
        batch = ended(LINES)
        seal.run()
        with as_owner() as session:
            session.execute(text(f"UPDATE sealed_lines SET {corruption}"))
        found = list(reconcile.differences())
        assert {difference.where for difference in found} == {ids.render("batch", batch.id)}
        assert any(difference.what.startswith(what) for difference in found), found

    def test_a_batch_that_runs_or_failed_validation_is_left_alone(self) -> None:
        with db.transaction() as session:
            batch = running(session, LINES)
        seal.run()
        assert again(batch).sealed_at is None
        finalize.run(batch.id)
        with as_owner() as session:
            session.execute(text("UPDATE batches SET status = 'failed', sealed_at = NULL"))
            assert not seal.is_due(session)

    def test_the_job_is_due_until_all_are_sealed(self) -> None:
        ended(LINES)
        with db.transaction() as session:
            assert seal.is_due(session)
        seal.run()
        with db.transaction() as session:
            assert not seal.is_due(session)

    def test_small_batches_are_sealed_together_and_a_large_one_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(seal, "LINES_AT_ONCE", 2 * len(LINES))
        batches = [ended(LINES), ended(LINES), ended(4 * LINES), ended(LINES), ended([])]
        before = [contents(batch) for batch in batches]
        with capture_logs() as logs:
            seal.run()
        assert [entry["batches"] for entry in logs] == [2, 1, 2]
        assert [contents(batch) for batch in batches] == before
        assert [len(sealed_columns(batch)) for batch in batches] == [7, 7, 28, 7, 0]
        assert list(reconcile.differences()) == []


class TestDeleted:
    def test_a_file_takes_its_object_with_it_and_leaves_the_charges(self) -> None:
        batch = ended(LINES)
        seal.run()
        keys = stored()
        files_of = of(batch)
        output = files_of[FilePart.OUTPUT]
        owner = Owner(batch.account_id, batch.livemode)
        with db.transaction() as session:
            files.delete(session, owner, ids.render("file", output.id))
        assert stored() == keys - {storage.output_key(output.id)}
        with db.transaction() as session:
            left = session.scalar(
                select(func.count())
                .select_from(Result)
                .where(Result.body.is_not(None), Result.amount.is_not(None))
            )
        assert left == 0
        assert list(reconcile.differences()) == []

    def test_a_file_that_was_deleted_before_gets_no_object(self) -> None:
        batch = ended(LINES)
        output = of(batch)[FilePart.OUTPUT]
        with db.transaction() as session:
            files.erase(session, session.get_one(File, output.id, with_for_update=True))
        seal.run()
        assert again(batch).sealed_at is not None
        assert stored() == {storage.output_key(of(batch)[FilePart.ERROR].id)}

    @pytest.mark.parametrize("step", ["_pack", "_mark"])
    def test_a_file_that_is_deleted_while_it_is_sealed_leaves_no_object(
        self, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        batch = ended(LINES)
        output = of(batch)[FilePart.OUTPUT]
        real = getattr(seal, step)

        def deleting(*given: Any) -> Any:
            with db.transaction() as session:
                files.erase(session, session.get_one(File, output.id, with_for_update=True))
            return real(*given)

        monkeypatch.setattr(seal, step, deleting)
        seal.run()
        assert again(batch).sealed_at is not None
        assert stored() == {storage.output_key(of(batch)[FilePart.ERROR].id)}

    def test_answers_that_are_erased_while_they_are_written_are_no_difference(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch = ended(LINES)
        output = of(batch)[FilePart.OUTPUT]
        real = seal.results.chunks

        def erased(*given: Any) -> Any:
            with db.transaction() as session:
                file = session.get_one(File, output.id, with_for_update=True)
                if file.deleted_at is None:
                    files.erase(session, file)
            return real(*given)

        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setattr(seal.results, "chunks", erased)
            seal.run()
        assert "batch.unsealable" not in {entry["event"] for entry in logs}
        let_leases_run_out()
        seal.run()
        assert again(batch).sealed_at is not None
        assert stored() == {storage.output_key(of(batch)[FilePart.ERROR].id)}

    def test_what_a_crash_leaves_of_a_deleted_file_is_an_orphan(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch = ended(LINES)
        seal.run()
        output = of(batch)[FilePart.OUTPUT]
        key = storage.output_key(output.id)
        raw = b"".join(storage.chunks(key))
        with db.transaction() as session:
            files.erase(session, session.get_one(File, output.id, with_for_update=True))
        storage.write(key, [raw])
        monkeypatch.setattr(sweeps, "ORPHAN_AFTER", timedelta(0))
        list(sweeps._delete_orphans())
        assert stored() == {storage.output_key(of(batch)[FilePart.ERROR].id)}


class TestInterrupted:
    @pytest.mark.parametrize("step", ["_write", "_pack", "_mark", "_extend"])
    def test_a_crash_at_any_step_leaves_the_rows_in_force_and_the_next_attempt_seals(
        self, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        batch = ended(LINES)
        before = contents(batch)
        with monkeypatch.context() as patch:
            patch.setattr(seal, step, _crash)
            with pytest.raises(RuntimeError, match="killed"):
                seal.run()
        assert again(batch).sealed_at is None
        assert contents(batch) == before
        assert list(reconcile.differences()) == []
        seal.run()
        assert again(batch).sealed_at is None, "the lease of the dead process still holds"
        let_leases_run_out()
        seal.run()
        assert again(batch).sealed_at is not None
        assert contents(batch) == before
        assert len(sealed_columns(batch)) == len(LINES)

    def test_one_whose_lease_was_lost_writes_nothing_more(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch = ended(LINES)
        real = seal._mark

        def overtaken(*given: Any) -> Any:
            monkeypatch.setattr(seal, "_mark", real)
            let_leases_run_out()
            seal.run()
            return real(*given)

        monkeypatch.setattr(seal, "_mark", overtaken)
        with capture_logs() as logs:
            seal.run()
        assert [entry["event"] for entry in logs] == ["batches.sealed", "batch.seal_again"]
        assert contents(batch) == rendered(batch)
        assert len(sealed_columns(batch)) == len(LINES)

    def test_processes_at_once_seal_each_batch_once(self) -> None:
        batches = [ended(LINES) for _ in range(6)]
        start = Barrier(3)

        def one() -> None:
            start.wait()
            seal.run()

        with capture_logs() as logs, ThreadPoolExecutor(3) as pool:
            for done in [pool.submit(one) for _ in range(3)]:
                done.result()
        assert {entry["event"] for entry in logs} == {"batches.sealed"}
        assert sum(entry["batches"] for entry in logs) == len(batches)
        assert all(again(batch).sealed_at for batch in batches)

    def test_a_worker_with_another_store_seals_nothing(
        self, configure: Callable[..., None], tmp_path: Any
    ) -> None:
        batch = ended(LINES)
        configure(storage_url=tmp_path.as_uri())
        with pytest.raises(OSError, match="store"):
            seal.run()
        assert again(batch).sealed_at is None
        assert list(tmp_path.glob("output/*")) == []


class TestUnsealable:
    @pytest.mark.parametrize(
        ("corruption", "reason"),
        [
            (
                "UPDATE results SET custom_id = 'longer-than-it-was' WHERE line_no = 1",
                "output file: ",
            ),
            ("DELETE FROM results WHERE line_no = 5", "error file: "),
            ("UPDATE results SET amount = amount + 1 WHERE line_no = 1", "charge of line 1: "),
            ("UPDATE invoices SET total = 1", "total of the invoice"),
            ("UPDATE batches SET input_tokens = 1", "input_tokens: "),
        ],
    )
    def test_rows_that_differ_are_kept_and_told_and_do_not_stop_the_next_batch(
        self, corruption: str, reason: str
    ) -> None:
        batch = ended(LINES)
        with as_owner() as session:
            session.execute(text("SET LOCAL session_replication_role = replica"))
            session.execute(text(corruption))
        other = ended(LINES)
        with capture_logs() as logs:
            seal.run()
        (told,) = [entry for entry in logs if entry["event"] == "batch.unsealable"]
        assert told["batch_id"] == batch.id
        assert told["reason"].startswith(reason)
        assert again(batch).sealed_at is None
        assert again(other).sealed_at is not None
        assert {file.sha256 for file in of(batch).values()} == {None}

    def test_an_object_that_is_not_as_it_was_written_is_not_believed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch = ended(LINES)
        real = seal._read_back
        monkeypatch.setattr(
            seal, "_read_back", lambda *given: real(*given)._replace(sha256=bytes(32))
        )
        with capture_logs() as logs:
            seal.run()
        assert {entry["event"] for entry in logs} == {"batch.unsealable"}
        assert again(batch).sealed_at is None


def _crash(*_: object, **__: object) -> None:
    raise RuntimeError("killed")
