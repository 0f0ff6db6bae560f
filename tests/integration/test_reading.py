"""A large file that several processes read in pieces comes to the same as one that is read from beginning to end."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from tests import factories
from tests.e2e.processes import wait_until
from tests.factories import CHAT_MODEL, RERANK_MODEL, chat_line
from xalen_batch import catalog, db, storage
from xalen_batch.catalog import CHAT
from xalen_batch.models import Batch, Task
from xalen_batch.pipeline import pieces, reading, validate
from xalen_batch.pipeline.reading import Reading
from xalen_batch.processes import is_running
from xalen_batch.states import BatchStatus

pytestmark = pytest.mark.usefixtures("database")

KEY = "input/00000000000000000000000000000001"


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LARGE_BYTES", 0)
    monkeypatch.setattr(reading, "PIECE_BYTES", 1_000)


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files that were read from their beginning."""
    read, keys = reading._whole, []

    def watched(key: str, *args: Any) -> Reading:
        keys.append(key)
        return read(key, *args)

    monkeypatch.setattr(reading, "_whole", watched)
    return keys


def line(custom_id: str, content: str = "Where is my parcel?", **body: Any) -> bytes:
    return orjson.dumps(chat_line(custom_id, content, **body))


def read(content: bytes, meanwhile: Callable[[], None] = lambda: None) -> Reading:
    storage.write(KEY, [content])
    return reading.read(KEY, endpoint=CHAT, models=catalog.models(), meanwhile=meanwhile)


def told(found: Reading) -> tuple[Any, ...]:
    """All that a batch gets of a file."""
    return found.faults.render(), found.split.models, found.split.lines, list(found.split.slices())


def from_the_beginning(content: bytes) -> Reading:
    storage.write(KEY, [content])
    return reading._whole(KEY, CHAT, catalog.models(), lambda: None)


SYSTEMS = [name * 400 for name in ("Be brief. ", "Be kind. ")]
GOOD = st.builds(
    lambda system, size, model: lambda n: orjson.dumps(
        {**chat_line(f"r{n}"), "body": {"model": model, "messages": [{"role": "system", "content": system}, {"role": "user", "content": "x" * size}]}}
    ),
    st.sampled_from(["", *SYSTEMS]), st.integers(1, 900), st.sampled_from([CHAT_MODEL, RERANK_MODEL]),
)  # fmt: skip
BLANK = st.sampled_from([b"", b"  ", b"\t"]).map(lambda raw: lambda n: raw)
ODD = st.sampled_from([b'{"custom_id":1}', b"[", b"\xff", line("twice"), line("r0"), line("x", stream=True)]).map(lambda raw: lambda n: raw)


@given(
    lines=st.one_of(st.lists(st.one_of(GOOD, GOOD, BLANK), max_size=40), st.lists(st.one_of(GOOD, GOOD, GOOD, BLANK, ODD), max_size=40)),
    newline=st.sampled_from([b"\n", b"\r\n"]),
    begins_with=st.sampled_from([b"", b"", b"\xef\xbb\xbf"]),
    ends_with=st.sampled_from([b"", b"\n", b"\n\n"]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_in_pieces_or_at_once_is_the_same(lines, newline, begins_with, ends_with) -> None:
    content = begins_with + newline.join(make(n) for n, make in enumerate(lines)) + ends_with
    # Where a piece begins decides a little about the running order, and nothing else.
    assert unordered(read(content)) == unordered(from_the_beginning(content))


def unordered(found: Reading) -> tuple[Any, ...]:
    faults, models, lines, slices = told(found)
    spans = {model: sorted(span for cut in slices if cut.model == model for span in cut.spans) for model in models}
    return (faults, models, lines, spans) if not faults else (faults,)


def test_a_good_file_is_read_once_and_in_pieces(whole: list[str]) -> None:
    content = b"\n".join(line(f"r{n}") for n in range(500))
    found = read(content)
    assert len(list(reading._cuts(KEY))) > 50
    assert whole == []
    assert told(found) == told(from_the_beginning(content))


def test_the_pieces_of_a_file_are_whole_lines_and_all_of_it() -> None:
    content = b"\n".join([line("a"), line("b", "long " * 10_000), b"", line("c"), *(line(f"r{n}") for n in range(30))])
    storage.write(KEY, [content])
    cuts = list(reading._cuts(KEY))
    assert len(cuts) > 5
    assert [begin for begin, _ in cuts] == [0, *(end for _, end in cuts[:-1])]
    assert cuts[-1][1] == len(content)
    assert all(content[end - 1 : end] == b"\n" for _, end in cuts[:-1])


def test_an_id_that_is_twice_in_pieces_far_apart_is_named_with_both_lines(whole: list[str]) -> None:
    found = read(b"\n".join([line("same"), *(line(f"r{n}") for n in range(60)), line("same")]))
    assert [(fault.line, fault.code) for fault in found.faults.kept] == [(62, "duplicate_custom_id")]
    assert "line 1 and again on line 62" in found.faults.kept[0].message
    assert whole == [KEY]


def test_more_requests_than_a_batch_may_have_are_seen_though_no_piece_has_them(configure: Callable[..., None]) -> None:
    configure(max_batch_lines=50)
    assert not read(b"\n".join(line(f"r{n}") for n in range(50))).faults
    (fault,) = read(b"\n".join(line(f"r{n}") for n in range(51))).faults.kept
    assert (fault.code, fault.line) == ("too_many_tasks", 51)


def test_a_file_of_blank_lines_is_refused_though_no_piece_has_too_many(configure: Callable[..., None]) -> None:
    configure(max_batch_lines=200)
    (fault,) = read(line("a") + b"\n" * 2_500 + line("b")).faults.kept
    assert (fault.code, fault.line) == ("too_many_tasks", 2_000)


def test_a_file_without_requests_says_so() -> None:
    assert [fault.code for fault in read(b" \n" * 900).faults.kept] == ["empty_file"]


def test_a_file_that_goes_while_it_is_read_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = reading._cuts

    def then_gone(key: str) -> Iterator[tuple[int, int]]:
        yield from list(cuts(key))
        storage.delete(key)

    monkeypatch.setattr(reading, "_cuts", then_gone)
    with pytest.raises(FileNotFoundError):
        read(b"\n".join(line(f"r{n}") for n in range(90)))


def test_without_processes_the_worker_reads_by_itself(
    monkeypatch: pytest.MonkeyPatch, configure: Callable[..., None], whole: list[str]
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise FileNotFoundError("No usable temporary directory found")

    content = line("a") + b"\n" + line("b")
    with monkeypatch.context() as patch:
        patch.setattr(reading, "ProcessPoolExecutor", refused)
        assert read(content).split.lines == 2
    configure(validation_processes=0)
    assert read(content).split.lines == 2
    assert whole == [KEY, KEY]


def test_a_lease_is_extended_while_others_read_and_its_loss_ends_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(Exception):
        pass

    calls = []

    def lost() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Lost

    monkeypatch.setattr(reading, "SECONDS_PER_LOOK", 0.0)
    with pytest.raises(Lost):
        read(b"\n".join(line(f"r{n}") for n in range(20_000)), meanwhile=lost)


@pytest.fixture
def batch() -> UUID:
    with db.transaction() as session:
        caller = factories.caller(session)
        lines = [chat_line(str(n)) for n in range(4_000)]
        return factories.batch(session, caller, factories.input_file(session, caller, lines)).id


def reread(batch_id: UUID) -> Batch:
    with db.transaction() as session:
        return session.get_one(Batch, batch_id)


def test_a_process_that_dies_with_a_file_counts_as_a_lost_worker_and_the_next_one_reads_it(
    batch: UUID, monkeypatch: pytest.MonkeyPatch, configure: Callable[..., None]
) -> None:
    configure(lease=30)
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "read", _die)
        validate.run(batch)
    found = reread(batch)
    assert (found.status, found.losses) == (BatchStatus.VALIDATING, 1)
    assert found.lease_until is not None
    assert found.lease_until > found.created_at + timedelta(seconds=29)
    validate.run(batch)
    assert reread(batch).status == BatchStatus.VALIDATING
    with db.transaction() as session:
        session.get_one(Batch, batch).lease_until = datetime.now(found.created_at.tzinfo)
    validate.run(batch)
    assert reread(batch).status == BatchStatus.IN_PROGRESS
    with db.transaction() as session:
        assert sum(session.scalars(select(Task.lines).where(Task.batch_id == batch))) == 4_000


def _die(*_: object) -> None:
    # The worker may read pieces too, and lives.
    if multiprocessing.parent_process():
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_processes_end_with_their_worker_however_it_dies(tmp_path: Path) -> None:
    def are_running() -> list[str]:
        return [pid for pid in os.listdir(tmp_path) if is_running(int(pid), "")]

    with subprocess.Popen([sys.executable, "-m", "tests.integration.sitting", tmp_path], cwd=Path(__file__).parents[2]) as worker:
        try:
            wait_until(lambda: len(are_running()) == 2, timeout=60, process=worker)
        finally:
            worker.kill()
    wait_until(lambda: not are_running(), timeout=20)
