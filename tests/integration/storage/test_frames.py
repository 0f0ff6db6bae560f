"""Frames: objects that any zstd decoder reads, and that are read from any offset."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xalen_batch import storage
from xalen_batch.storage import frames

KEY = "output/" + "0" * 32


@pytest.fixture(autouse=True)
def folder(configure: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    configure(storage_url=tmp_path.as_uri())
    monkeypatch.setattr(frames, "FRAME_BYTES", 100)
    return tmp_path


def raw() -> bytes:
    return b"".join(storage.chunks(KEY))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.binary(max_size=350), max_size=5),
    st.integers(0, 1_200),
    st.integers(0, 1_200) | st.none(),
)
def test_any_range_is_that_of_the_content(chunks: list[bytes], start: int, end: int | None) -> None:
    whole = b"".join(chunks)
    written = frames.write(KEY, chunks)
    assert written[:2] == (len(whole), hashlib.sha256(whole).digest())
    reader = frames.Reader(KEY)
    assert reader.size == len(whole)
    found = list(reader.chunks(start, end))
    assert b"".join(found) == whole[start:end]
    assert all(0 < len(chunk) <= 100 for chunk in found)
    assert reader.stored_size == written.stored_size == storage.size(KEY)


def test_any_decoder_reads_the_whole_object_as_one_stream() -> None:
    frames.write(KEY, [b"line\n" * 100])
    assert frames.zstd.decompress(raw()) == b"line\n" * 100


def test_an_error_while_it_is_written_leaves_the_object_before_as_it_was() -> None:
    frames.write(KEY, [b"before"])

    def failing() -> object:
        yield b"x" * 1_000
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        frames.write(KEY, failing())  # type: ignore[arg-type]
    assert b"".join(frames.Reader(KEY).chunks()) == b"before"


def test_a_table_that_is_longer_than_the_first_read_is_read_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frames, "_TAIL", 20)
    frames.write(KEY, [b"0123456789" * 100])
    assert b"".join(frames.Reader(KEY).chunks(995)) == b"56789"


def test_without_an_object_there_is_no_reader() -> None:
    with pytest.raises(FileNotFoundError):
        frames.Reader(KEY)


@pytest.mark.parametrize("kept", [0, 1, 16, 17, 60, -1])
def test_an_object_that_was_cut_off_is_damaged(kept: int) -> None:
    frames.write(KEY, [b"0123456789" * 100])
    storage.write(KEY, [raw()[:kept]])
    with pytest.raises(frames.Damaged, match=KEY):
        frames.Reader(KEY)


def test_a_byte_that_changed_is_found() -> None:
    frames.write(KEY, [hashlib.sha256(b"noise").digest() * 3])
    changed = bytearray(raw())
    changed[20] ^= 1
    storage.write(KEY, [bytes(changed)])
    with pytest.raises(frames.Damaged, match="frame 0"):
        list(frames.Reader(KEY).chunks())
