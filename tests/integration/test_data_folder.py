"""The access rights of the data folder."""

import stat
from pathlib import Path

import pytest

from xalen_batch.errors import ConfigError
from xalen_batch.standalone import data_folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_one_that_was_open_is_closed_with_its_files(tmp_path: Path) -> None:
    files = tmp_path / "data" / "files"
    files.mkdir(parents=True)
    for folder in (files, files.parent):
        folder.chmod(0o755)
    data_folder.make(files.parent)
    assert (mode(files.parent), mode(files)) == (0o700, 0o700)


def test_one_that_holds_more_than_ours_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    tmp_path.chmod(0o755)
    data_folder.make(tmp_path)
    assert mode(tmp_path) == 0o755
    assert mode(tmp_path / "logs") == 0o700


def test_it_is_used_once_at_a_time(tmp_path: Path) -> None:
    with (
        data_folder.locked(tmp_path),
        pytest.raises(ConfigError, match="running on"),
        data_folder.locked(tmp_path),
    ):
        pass
    with data_folder.locked(tmp_path):
        pass
