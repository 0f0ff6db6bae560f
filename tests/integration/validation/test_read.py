"""A large file that several processes read in pieces gives the result of a single reading."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests import ROOT
from tests.factories import CHAT_MODEL, RERANK_MODEL, chat_line, embedding_line
from tests.waiting import wait_until
from xalen_batch import catalog, storage
from xalen_batch.endpoints.names import CHAT, EMBEDDINGS
from xalen_batch.standalone.processes import is_running
from xalen_batch.validation import pieces
from xalen_batch.validation import read as reading
from xalen_batch.validation.pieces import ByteRange, Piece, Splitting
from xalen_batch.validation.pool import ReaderPool
from xalen_batch.validation.read import Reading

KEY = "input/00000000000000000000000000000001"
read_whole, serve = reading._whole, pieces.serve


@pytest.fixture(autouse=True)
def _small_pieces(
    monkeypatch: pytest.MonkeyPatch, configure: Callable[..., None], tmp_path: Path
) -> None:
    configure(storage_url=tmp_path.as_uri())
    monkeypatch.setattr(reading, "LARGE_BYTES", 0)
    monkeypatch.setattr(reading, "PIECE_BYTES", 1_000)


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files that were read from their beginning."""
    keys = []

    def watched(key: str, *args: Any, **options: Any) -> Reading:
        keys.append(key)
        return read_whole(key, *args, **options)

    monkeypatch.setattr(reading, "_whole", watched)
    return keys


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> list[ByteRange]:
    """The pieces that this process reads."""
    read_piece, ranges = pieces.read_piece, []

    def noted(byte_range: ByteRange, *args: Any) -> Piece | None:
        ranges.append(byte_range)
        return read_piece(byte_range, *args)

    monkeypatch.setattr(pieces, "read_piece", noted)
    return ranges


def line(custom_id: str, content: str = "Where is my parcel?", **body: Any) -> bytes:
    return orjson.dumps(chat_line(custom_id, content, **body))


def read(
    content: bytes, meanwhile: Callable[[], None] = lambda: None, *, endpoint: str = CHAT
) -> Reading:
    storage.write(KEY, [content])
    return reading.read(KEY, endpoint=endpoint, models=catalog.models(), meanwhile=meanwhile)


def told(found: Reading) -> tuple[Any, ...]:
    """All parts of a reading that a batch uses."""
    return found.faults.render(), found.split.models, found.split.lines, list(found.split.slices())


def from_the_beginning(content: bytes) -> Reading:
    storage.write(KEY, [content])
    return read_whole(KEY, CHAT, catalog.models(), lambda: None)


GOOD_FILE = b"\n".join(line(f"r{n}") for n in range(90))
SYSTEMS = [name * 400 for name in ("Be brief. ", "Be kind. ")]
GOOD = st.builds(
    lambda system, size, model: (
        lambda n: orjson.dumps(
            {
                **chat_line(f"r{n}"),
                "body": {
                    "model": model,
                    "messages": [
                        {"role": "system", "content": system},
                        {"role": "user", "content": "x" * size},
                    ],
                },
            }
        )
    ),
    st.sampled_from(["", *SYSTEMS]),
    st.integers(1, 900),
    st.sampled_from([CHAT_MODEL, RERANK_MODEL]),
)
BLANK = st.sampled_from([b"", b"  ", b"\t"]).map(lambda raw: lambda n: raw)
ODD = st.sampled_from(
    [b'{"custom_id":1}', b"[", b"\xff", line("twice"), line("r0"), line("x", stream=True)]
).map(lambda raw: lambda n: raw)


@given(
    lines=st.one_of(
        st.lists(st.one_of(GOOD, GOOD, BLANK), max_size=40),
        st.lists(st.one_of(GOOD, GOOD, GOOD, BLANK, ODD), max_size=40),
    ),
    newline=st.sampled_from([b"\n", b"\r\n"]),
    begins_with=st.sampled_from([b"", b"", b"\xef\xbb\xbf"]),
    ends_with=st.sampled_from([b"", b"\n", b"\n\n"]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_in_pieces_or_at_once_is_the_same(lines, newline, begins_with, ends_with) -> None:
    content = begins_with + newline.join(make(n) for n, make in enumerate(lines)) + ends_with
    # The boundaries of the pieces change only the running order.
    assert unordered(read(content)) == unordered(from_the_beginning(content))


def unordered(found: Reading) -> tuple[Any, ...]:
    faults, models, lines, slices = told(found)
    spans = {
        model: sorted(span for cut in slices if cut.model == model for span in cut.spans)
        for model in models
    }
    return (faults, models, lines, spans) if not faults else (faults,)


class Present(ReaderPool):
    """A pool whose processes have all started before it is used."""

    def __enter__(self) -> Self:
        self._start()
        return self


def test_a_good_file_is_read_once_by_others_and_in_pieces(
    monkeypatch: pytest.MonkeyPatch, own: list[ByteRange], whole: list[str]
) -> None:
    monkeypatch.setattr(reading, "ReaderPool", Present)
    content = b"\n".join(line(f"r{n}") for n in range(500))
    found = read(content)
    assert len(list(reading.byte_ranges(KEY))) > 50
    assert (own, whole) == ([], [])
    assert told(found) == told(from_the_beginning(content))


def test_a_fault_ends_the_reading_in_pieces_at_once(
    monkeypatch: pytest.MonkeyPatch, own: list[ByteRange], whole: list[str]
) -> None:
    monkeypatch.setattr(ReaderPool, "_start", lambda _: None)
    assert read(GOOD_FILE + b"\n[").faults.count == 1
    assert (len(own), whole) == (1, [KEY])


def test_the_pieces_of_a_file_are_whole_lines_and_all_of_it() -> None:
    content = b"\n".join(
        [
            line("a"),
            line("b", "long " * 10_000),
            b"",
            line("c"),
            *(line(f"r{n}") for n in range(30)),
        ]
    )
    storage.write(KEY, [content])
    ranges = list(reading.byte_ranges(KEY))
    assert len(ranges) > 5
    assert [each.begin for each in ranges] == [0, *(each.end for each in ranges[:-1])]
    assert ranges[-1].end == len(content)
    assert all(content[each.end - 1 : each.end] == b"\n" for each in ranges[:-1])


def test_an_id_that_is_twice_in_pieces_far_apart_is_named_with_both_lines(whole: list[str]) -> None:
    found = read(b"\n".join([line("same"), *(line(f"r{n}") for n in range(60)), line("same")]))
    assert [(fault.line, fault.code) for fault in found.faults.kept] == [
        (62, "duplicate_custom_id")
    ]
    assert "line 1 and again on line 62" in found.faults.kept[0].message
    assert whole == [KEY]


def test_more_requests_than_a_batch_may_have_are_seen_though_no_piece_has_them(
    configure: Callable[..., None],
) -> None:
    configure(max_batch_lines=50)
    assert not read(b"\n".join(line(f"r{n}") for n in range(50))).faults
    (fault,) = read(b"\n".join(line(f"r{n}") for n in range(51))).faults.kept
    assert (fault.code, fault.line) == ("too_many_tasks", 51)


def test_more_inputs_than_a_batch_may_have_are_seen_though_no_piece_has_them(
    configure: Callable[..., None], whole: list[str]
) -> None:
    lines = [orjson.dumps(embedding_line(f"r{n}", ["a", "b"])) for n in range(60)]
    configure(max_batch_inputs=120)
    assert not read(b"\n".join(lines), endpoint=EMBEDDINGS).faults
    assert whole == []
    configure(max_batch_inputs=119)
    (fault,) = read(b"\n".join(lines), endpoint=EMBEDDINGS).faults.kept
    assert (fault.code, fault.line) == ("too_many_inputs", 60)
    configure(max_batch_inputs="none")
    assert not read(b"\n".join(lines), endpoint=EMBEDDINGS).faults


def test_a_file_of_blank_lines_is_refused_though_no_piece_has_too_many(
    configure: Callable[..., None],
) -> None:
    configure(max_batch_lines=200)
    (fault,) = read(line("a") + b"\n" * 2_500 + line("b")).faults.kept
    assert (fault.code, fault.line) == ("too_many_tasks", 2_000)


def test_a_file_without_requests_says_so() -> None:
    assert [fault.code for fault in read(b" \n" * 900).faults.kept] == ["empty_file"]


def test_a_byte_order_mark_is_no_reason_to_read_a_file_twice(whole: list[str]) -> None:
    assert read(b"\xef\xbb\xbf" + b"\n".join(line(f"r{n}") for n in range(90))).split.lines == 90
    assert whole == []


def test_a_file_that_goes_while_it_is_read_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    byte_ranges = reading.byte_ranges

    def then_gone(key: str) -> Iterator[ByteRange]:
        yield from list(byte_ranges(key))
        storage.delete(key)

    monkeypatch.setattr(reading, "byte_ranges", then_gone)
    with pytest.raises(FileNotFoundError):
        read(GOOD_FILE)


def test_without_processes_all_pieces_are_read_here(
    monkeypatch: pytest.MonkeyPatch, own: list[ByteRange], whole: list[str]
) -> None:
    def refused(*_: object) -> None:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(multiprocessing, "get_context", refused)
    assert told(read(GOOD_FILE)) == told(from_the_beginning(GOOD_FILE))
    assert own == list(reading.byte_ranges(KEY))[::-1]


def test_the_setting_0_starts_no_processes(
    configure: Callable[..., None], own: list[ByteRange], whole: list[str]
) -> None:
    configure(validation_processes=0)
    assert read(GOOD_FILE).split.lines == 90
    assert (own, whole) == ([], [KEY])


class Scripted(ReaderPool):
    """A pool with one process, which takes the first piece and then does as the test says."""

    then: Callable[["Scripted", deque[ByteRange]], dict[ByteRange, Piece | None] | None]

    def _start(self) -> None:
        self.has: list[ByteRange] = []

    def give(self, todo: deque[ByteRange]) -> None:
        if len(todo) == len(list(reading.byte_ranges(KEY))):
            self.has.append(todo.popleft())

    @property
    def are_busy(self) -> bool:
        return bool(self.has)

    def results(
        self, todo: deque[ByteRange], timeout: float
    ) -> dict[ByteRange, Piece | None] | None:
        assert timeout == reading.PIECE_TIMEOUT
        return type(self).then(self, todo)


def test_a_piece_that_was_lost_is_read_here(
    monkeypatch: pytest.MonkeyPatch, own: list[ByteRange], whole: list[str]
) -> None:
    def lose(readers: Scripted, todo: deque[ByteRange]) -> dict[ByteRange, Piece | None]:
        todo.append(readers.has.pop())
        monkeypatch.setattr(Scripted, "give", lambda *_: None)
        return {}

    monkeypatch.setattr(Scripted, "then", lose, raising=False)
    monkeypatch.setattr(reading, "ReaderPool", Scripted)
    assert told(read(GOOD_FILE)) == told(from_the_beginning(GOOD_FILE))
    assert sorted(own) == list(reading.byte_ranges(KEY))
    assert whole == []


def test_a_process_that_never_returns_its_piece_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, own: list[ByteRange], whole: list[str]
) -> None:
    monkeypatch.setattr(Scripted, "then", lambda readers, todo: None, raising=False)
    monkeypatch.setattr(reading, "ReaderPool", Scripted)
    assert told(read(GOOD_FILE)) == told(from_the_beginning(GOOD_FILE))
    assert (own, whole) == ([], [KEY])


def test_a_piece_that_takes_too_long_is_nothing() -> None:
    ours, theirs = multiprocessing.Pipe()
    with Scripted(1, Splitting(CHAT, {})) as readers:
        readers._busy[ours] = ByteRange(KEY, 0, 1)
        assert ReaderPool.results(readers, deque(), 0.01) is None
        theirs.send(None)
        assert ReaderPool.results(readers, deque(), 60) == {ByteRange(KEY, 0, 1): None}


def test_a_lease_is_kept_by_what_is_read_and_its_loss_ends_the_reading(
    own: list[ByteRange],
) -> None:
    class Lost(Exception):
        pass

    calls = []

    def lost() -> None:
        calls.append(1)
        if len(calls) == 20:
            raise Lost

    with pytest.raises(Lost):
        read(b"\n".join(line(f"r{n}") for n in range(2_000)), meanwhile=lost)
    assert len(own) <= 20


def test_processes_that_die_are_told_of_and_the_file_is_read_all_the_same(
    monkeypatch: pytest.MonkeyPatch, whole: list[str]
) -> None:
    monkeypatch.setattr(pieces, "serve", _die)
    lost = threading.Event()
    monkeypatch.setattr(ReaderPool, "_lost", lambda *_: lost.set())
    content = b"\n".join(line(f"r{n}") for n in range(4_000))
    while not lost.is_set():
        assert read(content).split.lines == 4_000
    assert whole == []


def _die(connection: Connection, *_: object) -> None:
    connection.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_bug_is_told_of_by_the_worker_and_nothing_of_a_line_is_printed(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    own: list[ByteRange],
    whole: list[str],
) -> None:
    monkeypatch.setattr(reading, "ReaderPool", Present)
    monkeypatch.setattr(pieces, "serve", _fail)
    with capture_logs() as events:
        assert read(GOOD_FILE).split.lines == 90
    assert (own, whole) == ([], [KEY])
    assert {(event["event"], event["error"]) for event in events} == {
        ("reading.crashed", "ValueError")
    }
    assert "parcel" not in f"{events}{capfd.readouterr().err}"


def _fail(*told: Any) -> None:
    def fail(byte_range: ByteRange, *_: object) -> None:
        raise ValueError("Where is my parcel?")

    pieces.read_piece = fail  # type: ignore[assignment]
    serve(*told)


@pytest.mark.parametrize(
    ("method", "command"), [("forkserver", "multiprocessing"), ("fork", "sitting")]
)
def test_the_processes_end_with_their_worker_however_it_dies(
    tmp_path: Path, method: str, command: str
) -> None:
    folder = tmp_path / "running"
    folder.mkdir()

    def are_running() -> list[str]:
        return [pid for pid in os.listdir(folder) if is_running(int(pid), command)]

    with subprocess.Popen(
        [sys.executable, "-m", "tests.integration.validation.sitting", folder, method], cwd=ROOT
    ) as worker:
        try:
            wait_until(lambda: len(are_running()) == 2, process=worker)
        finally:
            worker.kill()
    wait_until(lambda: not are_running())
