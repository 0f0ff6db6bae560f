"""Assembling: the input file of a run is written once, even if a process dies, freezes or is
overtaken by another.
"""

import errno
import hashlib
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import obstore
import pytest
from sqlalchemy import func, update

from tests import factories
from tests.factories import chat_line
from tests.integration.schedules import assembling
from tests.integration.schedules.assembling import (
    check_runs,
    expire_lease,
    fire,
    home,
    made,
    requests_in_inbox,
    reread,
    schedule,
    stored,
    template,
)
from xalen_batch import db, files, ids, storage
from xalen_batch.accounts.accounts import Caller
from xalen_batch.batches import batches
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import Batch, File
from xalen_batch.pipeline import recover, validate
from xalen_batch.schedules import assemble, inbox, sources
from xalen_batch.schedules.assemble import Assembled
from xalen_batch.states import BatchStatus

pytestmark = pytest.mark.usefixtures("database")
caller, small = assembling.caller, assembling.small


class Died(BaseException):
    """Stands for the end of the process: no code handles it."""


def fault(batch: Batch) -> dict[str, Any]:
    """The one error of a batch that failed before its file was there."""
    found, file = reread(batch)
    assert (found.status, found.lease_until) == (BatchStatus.FAILED, None)
    assert not files.is_ready(file)
    with pytest.raises(FileNotFoundError):
        stored(batch)
    (error,) = found.errors or []
    return error


KINDS = ("template", "source", "inbox")


def expected(kind: str, names: Iterable[str]) -> list[str]:
    return [f"daily-2026-11-24-{name}" if kind == "template" else name for name in names]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_reads_what_was_there_when_it_was_fired(caller: Caller, kind: str) -> None:
    batch = fire(made(caller, kind, "abc"))
    _, file = reread(batch)
    assert (file.size, file.sha256, file.filename, file.purpose) == (
        0,
        None,
        "nightly-2026-11-25.jsonl",
        "batch",
    )
    validate.run(batch.id)
    check_runs(batch, expected(kind, "abc"))
    if kind == "template":
        assert b"Since 2026-11-25" in stored(batch)


def test_a_run_over_a_fixed_file_reads_it_as_it_is(caller: Caller) -> None:
    batch = fire(schedule(caller, input_file_id=template(caller, [chat_line("{{run_id}}")])))
    validate.run(batch.id)
    check_runs(batch, ["{{run_id}}"])


class Points:
    """The points of `validate` at which another process can interfere, each passed once per run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed: list[str] = []
        self.act: Callable[[str], None] = lambda _: None
        write, count, read = storage.write, Assembled.count, validate._read

        def watched_write(key: str, chunks: Iterable[bytes]) -> None:
            def between() -> Iterator[bytes]:
                self.point("begun")
                for number, chunk in enumerate(chunks, start=1):
                    yield chunk
                    self.point(f"block {number}")
                self.point("written")

            write(key, between())
            self.point("placed")

        def watched_count(assembled: Assembled, session: Any) -> None:
            count(assembled, session)
            self.point("counted")

        def watched_read(*args: Any) -> Any:
            self.point("committed")
            return read(*args)

        monkeypatch.setattr(storage, "write", watched_write)
        monkeypatch.setattr(Assembled, "count", watched_count)
        monkeypatch.setattr(validate, "_read", watched_read)

    def point(self, name: str) -> None:
        self.passed.append(name)
        self.act(name)


POINTS = ("begun", "block 1", "block 3", "written", "placed", "counted", "committed")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", POINTS)
def test_whoever_takes_over_from_a_dead_worker_makes_the_same_file(
    caller: Caller, kind: str, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = fire(made(caller, kind, "abc"))
    points = Points(monkeypatch)

    def die(name: str) -> None:
        if name == at:
            raise Died

    points.act = die
    with pytest.raises(Died):
        validate.run(batch.id)
    _, file = reread(batch)
    assert files.is_ready(file) == (at == "committed")
    # All of it is committed, or none.
    assert requests_in_inbox() == (0 if files.is_ready(file) or kind != "inbox" else 3)
    points.act = lambda _: None
    expire_lease()
    validate.run(batch.id)
    check_runs(batch, expected(kind, "abc"))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [point for point in POINTS if point != "counted"])
def test_a_frozen_worker_that_wakes_up_changes_nothing_of_what_another_has_made(
    caller: Caller, kind: str, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two steps of one process, another assembles all of the file; afterwards the input
    of both is deleted or changed.
    """
    batch = fire(made(caller, kind, "abc"))
    points = Points(monkeypatch)

    def overtaken(name: str) -> None:
        if name != at:
            return
        points.act = lambda _: None
        expire_lease()
        validate.run(batch.id)
        check_runs(batch, expected(kind, "abc"))
        if kind == "source":
            (home(caller) / "a.jsonl").unlink()
            (home(caller) / "c.jsonl").write_bytes(factories.jsonl([chat_line("mixed")]))

    points.act = overtaken
    validate.run(batch.id)
    assert at in points.passed
    check_runs(batch, expected(kind, "abc"))


@pytest.mark.usefixtures("small")
def test_a_worker_that_finds_a_changed_source_fails_no_batch_that_another_has_started(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = fire(made(caller, "source", "abc"))
    read = sources._read

    def overtaken(*args: Any) -> Iterator[bytes]:
        monkeypatch.setattr(sources, "_read", read)
        expire_lease()
        validate.run(batch.id)
        (home(caller) / "b.jsonl").unlink()
        yield from read(*args)

    monkeypatch.setattr(sources, "_read", overtaken)
    validate.run(batch.id)
    check_runs(batch, "abc")


class TestFaults:
    def test_an_object_that_has_changed_fails_the_batch_by_name(self, caller: Caller) -> None:
        batch = fire(made(caller, "source", "abc"))
        (home(caller) / "b.jsonl").write_bytes(b"another")
        validate.run(batch.id)
        error = fault(batch)
        assert (error["code"], error["param"]) == ("source_changed", "source")
        assert error["message"].startswith(
            "Object 'in/b.jsonl' has changed since the run took it. "
        )

    def test_a_template_that_is_gone_fails_the_batch_by_name(self, caller: Caller) -> None:
        of_template = made(caller, "template", "abc")
        batch = fire(of_template)
        storage.delete(
            storage.key(
                ids.parse("file", of_template.definition["template_file_id"]) or UUID(int=0)
            )
        )
        validate.run(batch.id)
        error = fault(batch)
        assert (error["code"], error["param"]) == ("file_not_found", "template_file_id")
        assert of_template.definition["template_file_id"] in error["message"]

    @pytest.mark.parametrize("kind", ["template", "source"])
    def test_more_than_one_batch_can_have_fails_it(
        self, caller: Caller, kind: str, configure: Callable[..., None]
    ) -> None:
        batch = fire(made(caller, kind, "abc"))
        configure(max_file_bytes=300)
        validate.run(batch.id)
        assert (fault(batch)["code"], "300 bytes" in fault(batch)["message"]) == (
            "file_too_large",
            True,
        )

    def test_requests_that_were_acknowledged_run_also_where_the_limit_is_lower_by_now(
        self, caller: Caller, configure: Callable[..., None]
    ) -> None:
        batch = fire(made(caller, "inbox", "abc"))
        configure(max_file_bytes=300)
        validate.run(batch.id)
        check_runs(batch, "abc")

    def test_a_placeholder_that_no_preflight_has_seen_fails_it_with_its_line(
        self, caller: Caller
    ) -> None:
        lines = [chat_line("a"), chat_line("b", "{{scheduled_dat}}")]
        batch = fire(schedule(caller, template_file_id=template(caller, lines)))
        validate.run(batch.id)
        assert (fault(batch)["code"], fault(batch)["line"]) == ("invalid_placeholder", 2)

    def test_a_template_line_that_is_too_long_fails_it_with_its_line(
        self, caller: Caller, configure: Callable[..., None]
    ) -> None:
        batch = fire(
            schedule(
                caller,
                template_file_id=template(caller, [chat_line("a"), chat_line("b", "x" * 500)]),
            )
        )
        configure(max_line_bytes=400)
        validate.run(batch.id)
        assert (fault(batch)["code"], fault(batch)["line"]) == ("line_too_long", 2)

    def test_requests_that_somebody_removed_fail_it(self, caller: Caller) -> None:
        batch = fire(made(caller, "inbox", "abc"))
        with db.transaction() as session:
            inbox.forget(session, batch.run_id or UUID(int=0))
        validate.run(batch.id)
        assert fault(batch)["code"] == "inbox_not_found"

    def test_what_fails_validation_has_its_file_to_look_at(self, caller: Caller) -> None:
        (home(caller) / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + factories.jsonl([chat_line("a")]))
        (home(caller) / "b.jsonl").write_bytes(b"\xef\xbb\xbf{}")
        batch = fire(schedule(caller, source={"prefix": "in"}))
        validate.run(batch.id)
        found, file = reread(batch)
        assert [(error["line"], error["code"]) for error in found.errors or []] == [
            (2, "missing_required_parameter")
        ]
        assert (file.size, stored(batch)) == (
            len(stored(batch)),
            factories.jsonl([chat_line("a")]) + b"{}\n",
        )

    def test_objects_without_a_byte_are_an_empty_file(self, caller: Caller) -> None:
        (home(caller) / "a.jsonl").touch()
        batch = fire(schedule(caller, source={"prefix": "in"}))
        validate.run(batch.id)
        found, file = reread(batch)
        assert [error["code"] for error in found.errors or []] == ["empty_file"]
        assert (file.size, file.sha256) == (0, hashlib.sha256().digest())

    @pytest.mark.parametrize(
        "error", [OSError(errno.EIO, "Input/output error"), obstore.exceptions.GenericError("away")]
    )
    def test_storage_that_is_away_fails_nothing_and_is_tried_again(
        self, caller: Caller, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch = fire(made(caller, "source", "abc"))
        with monkeypatch.context() as patch:
            patch.setattr(sources, "_check_version", lambda *_: (_ for _ in ()).throw(error))
            with pytest.raises(type(error)):
                validate.run(batch.id)
        assert reread(batch)[0].status == BatchStatus.VALIDATING
        expire_lease()
        validate.run(batch.id)
        check_runs(batch, "abc")


@pytest.mark.usefixtures("small")
def test_a_batch_cancelled_meanwhile_gets_no_file_and_its_requests_go_when_the_file_does(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = fire(made(caller, "inbox", "abc"))
    points = Points(monkeypatch)

    def cancelled(name: str) -> None:
        if name == "block 1":
            with db.transaction() as session:
                batches.cancel(session, session.get_one(Batch, batch.id))

    points.act = cancelled
    validate.run(batch.id)
    found, file = reread(batch)
    assert (found.status, files.is_ready(file), requests_in_inbox()) == (
        BatchStatus.CANCELLING,
        False,
        3,
    )
    with pytest.raises(FileNotFoundError):
        stored(batch)
    with db.transaction() as session:
        session.execute(update(Batch).values({"status": "cancelled"}))
        files.delete(session, caller, ids.render("file", file.id))
    assert requests_in_inbox() == 0


def test_a_file_that_is_not_together_is_nobody_elses_input(caller: Caller) -> None:
    batch = fire(made(caller, "inbox", "a"))
    public_id = ids.render("file", batch.input_file_id)
    with (
        db.transaction() as session,
        pytest.raises(InvalidRequest, match="when its batch is in_progress") as refused,
    ):
        batches.create(
            session,
            caller,
            input_file_id=public_id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
        )
    assert (refused.value.code, refused.value.param) == ("file_not_ready", "input_file_id")
    # However it came to be one.
    with db.transaction() as session:
        other = factories.batch(session, caller, session.get_one(File, batch.input_file_id))
    validate.run(other.id)
    assert fault(other)["code"] == "file_not_ready"
    validate.run(batch.id)
    check_runs(batch, "a")


def test_the_sweep_leaves_a_file_that_is_being_put_together(caller: Caller) -> None:
    batch = fire(made(caller, "inbox", "a"))
    with db.transaction() as session:
        session.execute(update(File).values(expires_at=func.now() - timedelta(days=1)))
    recover.tick()
    validate.run(batch.id)
    check_runs(batch, "a")


def test_memory_does_not_grow_with_the_file(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = chat_line("a-{{run_id}}", "x" * 100_000 + "{{scheduled_date}}")
    batch = fire(schedule(caller, template_file_id=template(caller, [line] * 640)))
    tracemalloc.start()
    try:
        found = assemble.assemble(batch, lambda: None)
        assert isinstance(found, Assembled)
        assert found.size > 64_000_000
        assert tracemalloc.get_traced_memory()[1] < 24_000_000
    finally:
        tracemalloc.stop()
