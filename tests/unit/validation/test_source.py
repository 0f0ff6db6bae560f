"""A local file is read as an object in storage is: in chunks, from an offset until another."""

from pathlib import Path

import pytest

from xalen_batch import storage
from xalen_batch.validation import source


def test_a_local_file_is_read_from_an_offset_until_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "READ_CHUNK", 4)
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b"0123456789")
    assert source.size(file) == 10
    assert list(source.chunks(file)) == [b"0123", b"4567", b"89"]
    assert list(source.chunks(file, 3, 8)) == [b"3456", b"7"]
    assert list(source.chunks(file, 3, 3)) == []


def test_a_local_file_that_is_cut_while_it_is_read_is_unavailable(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b"0123")
    with pytest.raises(storage.UNAVAILABLE, match="cut"):
        list(source.chunks(file, 0, 5))
    with pytest.raises(FileNotFoundError):
        source.size(tmp_path / "none")
