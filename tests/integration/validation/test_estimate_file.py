"""The estimate of a stored file is the same in pieces, in another process and in this one."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.factories import (
    CHAT_MODEL,
    EMBEDDING_MODEL,
    RERANK_MODEL,
    chat_line,
    embedding_line,
    rerank_line,
)
from tests.waiting import PATIENCE
from xalen_batch import catalog, config, storage
from xalen_batch.billing.terms import Terms
from xalen_batch.endpoints.names import CHAT, EMBEDDINGS, RERANK
from xalen_batch.errors import Unavailable
from xalen_batch.validation import apart, estimate_file, pieces, pool, read
from xalen_batch.validation.estimate import Estimate, estimate
from xalen_batch.validation.estimate_file import Estimating
from xalen_batch.validation.pool import ReaderPool

KEY = "input/00000000000000000000000000000001"
PRICES = {CHAT_MODEL: {"input": "0.02", "output": "0.04"}, RERANK_MODEL: {"input": "0.003"}}


@pytest.fixture(autouse=True)
def _small_pieces(
    monkeypatch: pytest.MonkeyPatch, configure: Callable[..., None], tmp_path: Path
) -> None:
    configure(storage_url=tmp_path.as_uri(), max_reported_errors=5)
    monkeypatch.setattr(estimate_file, "LARGE_BYTES", 0)
    monkeypatch.setattr(read, "PIECE_BYTES", 1_000)


def asked(endpoint: str | None, prices: dict[str, dict[str, str]]) -> dict[str, Any]:
    return {
        "endpoint": endpoint,
        "models": catalog.models(),
        "terms": Terms(prices, dict.fromkeys(prices, "openai")),
        "discount_rate": Decimal("0.5"),
    }


CHATS = st.builds(
    lambda size, model, limit: (
        lambda n: chat_line(f"r{n}", "x y" * size, model=model, max_tokens=limit)
    ),
    st.integers(1, 300),
    st.sampled_from([CHAT_MODEL, CHAT_MODEL, RERANK_MODEL]),
    st.integers(1, 9_000),
)
TOOLS = st.just(
    lambda n: chat_line(f"r{n}", tools=[{"type": "function", "function": {"name": "look_up"}}])
)
ODD = st.sampled_from(
    [
        b"",
        b" ",
        b"[",
        b"\xff",
        chat_line("twice"),
        chat_line("r0"),
        chat_line("s", stream=True),
        rerank_line("rank"),
    ]
).map(lambda line: lambda n: line)
# Faults that mean the same wherever they are in a file.
FAULTY = st.sampled_from(
    [
        b"[",
        b"\xff",
        b'{"custom_id":"twice","custom_id":"twice"}',
        b"[" * 500,
        chat_line("n", n=0),
        {**chat_line("m"), "method": "GET"},
        {**chat_line("u"), "url": "/v1/other"},
        {**chat_line("b"), "body": []},
        chat_line("g", model="gpt-9"),
        rerank_line("rank"),
    ]
).map(lambda line: lambda n: line if isinstance(line, bytes) else line | {"custom_id": f"f{n}"})
LINES = st.one_of(
    st.lists(st.one_of(CHATS, TOOLS), max_size=40),
    st.lists(st.one_of(CHATS, CHATS, TOOLS, FAULTY, st.just(lambda _: b"")), max_size=40),
    st.lists(st.one_of(CHATS, CHATS, CHATS, TOOLS, ODD), max_size=40),
)


class NoProcesses(ReaderPool[Any, Any]):
    """A pool whose processes never start: the process that asks reads the pieces itself."""

    def _start(self) -> None:
        pass


@given(
    lines=LINES,
    newline=st.sampled_from([b"\n", b"\r\n"]),
    begins_with=st.sampled_from([b"", b"", b"\xef\xbb\xbf"]),
    ends_with=st.sampled_from([b"", b"\n", b"\n\n"]),
    endpoint=st.sampled_from([CHAT, None, RERANK]),
    prices=st.sampled_from([PRICES, {CHAT_MODEL: PRICES[CHAT_MODEL]}, {}]),
)
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_in_pieces_or_at_once_is_the_same(
    lines, newline, begins_with, ends_with, endpoint, prices
) -> None:
    made = [make(n) for n, make in enumerate(lines)]
    content = (
        begins_with
        + newline.join(line if isinstance(line, bytes) else orjson.dumps(line) for line in made)
        + ends_with
    )
    storage.write(KEY, [content])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate_file, "ReaderPool", NoProcesses)
        found = estimate_file.estimate_file(KEY, **asked(endpoint, prices))
        local = estimate_local(content, endpoint, prices)
    expected = estimate([content], **asked(endpoint, prices))
    assert found.render() == local.render() == expected.render()
    assert list(found.models) == list(local.models) == list(expected.models)


def estimate_local(
    content: bytes, endpoint: str | None, prices: dict[str, dict[str, str]], **limits: int | None
) -> Estimate:
    """As the command line estimates a file."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return estimate_file.estimate_local(
            Path(file.name),
            **asked(endpoint, prices),
            limits=config.settings().model_copy(update=limits),
            progress=estimate_file.silent,
        )


def test_the_command_line_reads_pieces_in_other_processes_and_shows_progress(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b"\n".join(orjson.dumps(chat_line(f"r{n}")) for n in range(90)))
    here = os.getpid()

    read_lines = pieces.read_lines

    def elsewhere(*args: Any) -> object:
        assert os.getpid() != here, "a piece was read by the process that asks"
        return read_lines(*args)

    monkeypatch.setattr(pieces, "read_lines", elsewhere)
    patient = partial(ReaderPool, start_timeout=PATIENCE)
    monkeypatch.setattr(estimate_file, "ReaderPool", patient)
    shown: list[tuple[int, int]] = []

    @contextmanager
    def progress() -> Iterator[Callable[[int, int], None]]:
        yield lambda done, size: shown.append((done, size))

    found = estimate_file.estimate_local(
        file, **asked(CHAT, PRICES), limits=config.settings(), progress=progress
    )
    size = file.stat().st_size
    assert (found.lines, shown[-1]) == (90, (size, size))
    assert [done for done, _ in shown] == sorted({done for done, _ in shown})
    assert len(shown) > 5


@pytest.mark.parametrize(
    ("limits", "code"),
    [({"max_line_bytes": 50}, "line_too_long"), ({"max_batch_lines": 20}, "too_many_tasks")],
)
def test_the_command_line_checks_by_the_limits_of_the_server(
    limits: dict[str, int], code: str
) -> None:
    content = b"\n".join(orjson.dumps(chat_line(f"r{n}")) for n in range(60))
    found = estimate_local(content, CHAT, PRICES, **limits)
    assert {fault.code for fault in found.faults.kept} == {code}


def test_an_estimate_counts_the_inputs_of_embeddings_over_all_pieces() -> None:
    content = b"\n".join(orjson.dumps(embedding_line(f"r{n}", ["a", "b"])) for n in range(60))
    prices = {EMBEDDING_MODEL: {"input": "0.003"}}
    for most, codes in ((120, []), (119, ["too_many_inputs"]), (None, [])):
        found = estimate_local(content, EMBEDDINGS, prices, max_batch_inputs=most)
        assert [fault.code for fault in found.faults.kept] == codes


def test_good_pieces_are_read_by_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write(KEY, [b"\n".join(orjson.dumps(chat_line(f"r{n}")) for n in range(90))])

    def refused(*_: object) -> None:
        raise AssertionError("a piece was read by the process that asks")

    monkeypatch.setattr(Estimating, "__call__", refused)
    assert estimate_file.estimate_file(KEY, **asked(CHAT, PRICES)).lines == 90


@pytest.mark.parametrize("endpoint", [CHAT, None])
def test_pieces_with_faults_are_read_once(
    monkeypatch: pytest.MonkeyPatch, endpoint: str | None
) -> None:
    lines = [orjson.dumps(chat_line(f"r{n}")) for n in range(90)]
    lines[50] = lines[71] = b"{"
    storage.write(KEY, [b"\n".join(lines)])

    def refused(*_: object) -> None:
        raise AssertionError("the file was read again as a whole")

    monkeypatch.setattr(Estimating, "whole", refused)
    found = estimate_file.estimate_file(KEY, **asked(endpoint, PRICES))
    assert [fault.line for fault in found.faults.kept] == [51, 72]
    assert found.lines == 88


def test_a_long_first_line_is_not_parsed_by_the_process_that_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimate_file, "FIRST_BYTES", 1_000)
    lines = [chat_line("long", "x" * 2_000), *(chat_line(f"r{n}") for n in range(60))]
    storage.write(KEY, [b"\n".join(map(orjson.dumps, lines))])
    asked_for_none = Estimating(limits=None, **asked(None, PRICES))
    assert asked_for_none._first_url(KEY, 0) is None
    found = estimate_file.estimate_file(KEY, **asked(None, PRICES))
    assert (found.endpoint, found.lines) == (CHAT, 61)


def test_an_id_that_is_twice_in_pieces_far_apart_is_named_with_both_lines() -> None:
    lines = [chat_line("same"), *(chat_line(f"r{n}") for n in range(60)), chat_line("same")]
    storage.write(KEY, [b"\n".join(map(orjson.dumps, lines))])
    (fault,) = estimate_file.estimate_file(KEY, **asked(None, PRICES)).faults.kept
    assert (fault.line, fault.code) == (62, "duplicate_custom_id")
    assert "line 1 and again on line 62" in fault.message


class TestApart:
    def test_large_work_is_done_by_a_nicer_process_and_small_work_here(self) -> None:
        assert apart.run(os.getpid, size=apart.SMALL_BYTES) == os.getpid()
        assert apart.run(os.getpid, size=apart.SMALL_BYTES + 1) != os.getpid()
        assert apart.run(niceness, size=apart.SMALL_BYTES + 1) == min(
            19, niceness() + apart.NICENESS
        )

    def test_without_processes_it_is_done_here(
        self, monkeypatch: pytest.MonkeyPatch, configure: Callable[..., None]
    ) -> None:
        configure(validation_processes=0)
        assert apart.run(os.getpid, size=apart.SMALL_BYTES + 1) == os.getpid()
        configure(validation_processes=2)

        def refused(*_: object) -> None:
            raise FileNotFoundError("No usable temporary directory found")

        monkeypatch.setattr(multiprocessing, "get_context", refused)
        with capture_logs() as events:
            assert apart.run(os.getpid, size=apart.SMALL_BYTES + 1) == os.getpid()
        assert [event["event"] for event in events] == ["reading.no_processes"]

    def test_what_a_process_was_lost_with_is_done_here(self) -> None:
        with capture_logs() as events:
            assert apart.run(Mortal(os.getpid()), size=apart.SMALL_BYTES + 1) == os.getpid()
        assert [event["event"] for event in events] == ["reading.process_lost"]

    def test_a_file_that_is_gone_is_told_as_such(self) -> None:
        storage.write(KEY, [b"x" * (apart.SMALL_BYTES + 1)])
        storage.delete(KEY)
        with pytest.raises(FileNotFoundError):
            apart.run(Size(KEY), size=apart.SMALL_BYTES + 1)

    def test_work_without_an_end_is_given_up_and_its_process_ended(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(apart, "WORK_TIMEOUT", 0.5)
        with pytest.raises(Unavailable, match=r"Reading took more than 0\.5 s"):
            apart.run(endless, size=apart.SMALL_BYTES + 1)
        assert multiprocessing.active_children() == []


def niceness() -> int:
    return os.nice(0)


class Mortal:
    """Work that only the process `home` survives."""

    def __init__(self, home: int) -> None:
        self.home = home

    def __call__(self) -> int:
        if os.getpid() != self.home:
            os._exit(1)
        return self.home


class Size:
    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self) -> int:
        return storage.size(self.key)


def endless() -> None:
    threading.Event().wait()


def test_reading_processes_import_no_database() -> None:
    loaded = (
        f"import sys, {', '.join(pool.PRELOADED)}; print('sqlalchemy' in sys.modules or 'psycopg'"
        " in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )
