"""The folders of stored and dropped files: for their user alone, at the operator's paths."""

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from xalen_batch import storage
from xalen_batch.config import MiB, settings
from xalen_batch.errors import ConfigError


@pytest.fixture(autouse=True)
def _forgotten() -> object:
    storage.store.cache_clear()
    yield
    storage.store.cache_clear()


def test_folders_are_made_for_this_user_alone(
    configure: Callable[..., None], tmp_path: Path
) -> None:
    configure(
        data_dir=tmp_path / "data", storage_url=(tmp_path / "data" / "deep" / "files").as_uri()
    )
    storage.store()
    made = [tmp_path / "data", tmp_path / "data" / "deep", tmp_path / "data" / "deep" / "files"]
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in made] == [0o700] * 3


@pytest.mark.parametrize(
    "address", ["s3://bucket/prefix", "files", "file://relative/path", "https://host/path"]
)
def test_what_is_no_local_folder_is_refused_with_the_remedy(
    configure: Callable[..., None], address: str
) -> None:
    configure(storage_url=address)
    with pytest.raises(ValidationError, match="file:///path"):
        settings()


def test_an_empty_address_is_the_folder_in_the_data_folder(
    configure: Callable[..., None], tmp_path: Path
) -> None:
    configure(data_dir=tmp_path, storage_url="")
    assert storage.folder() == tmp_path / "files"


def test_the_check_leaves_nothing_behind(configure: Callable[..., None], tmp_path: Path) -> None:
    configure(storage_url=(tmp_path / "files").as_uri())
    storage.check()
    assert list((tmp_path / "files").iterdir()) == []


@pytest.mark.parametrize("place", ["taken", "taken/files"])
def test_the_check_names_the_folder_the_reason_and_the_remedy(
    configure: Callable[..., None], tmp_path: Path, place: str
) -> None:
    (tmp_path / "taken").write_text("")
    configure(storage_url=(tmp_path / place).as_uri())
    with pytest.raises(ConfigError, match=r"taken.* cannot be written: .*XALEN_STORAGE_URL"):
        storage.check()


class TestDropRoots:
    def test_they_are_folders_between_commas(
        self, configure: Callable[..., None], tmp_path: Path
    ) -> None:
        configure(data_dir=tmp_path / "data", drop_roots=f" {tmp_path}/a, /b/c ,")
        assert settings().drop_roots == (tmp_path / "a", Path("/b/c"))
        configure(drop_roots="")
        assert settings().drop_roots == ()

    @pytest.mark.parametrize(
        "root",
        [
            "drops",
            "/",
            "{tmp}",
            "{tmp}/data",
            "{tmp}/data/deep/files",
            "{tmp}/data/deep/files/drop",
            "{tmp}/link",
        ],
    )
    def test_none_of_them_holds_what_is_the_servers_own(
        self, configure: Callable[..., None], tmp_path: Path, root: str
    ) -> None:
        (tmp_path / "link").symlink_to("data")
        configure(
            data_dir=tmp_path / "data",
            storage_url=(tmp_path / "data" / "deep" / "files").as_uri(),
            drop_roots=root.format(tmp=tmp_path),
        )
        with pytest.raises(ValidationError, match="drop_roots"):
            settings()


def test_an_object_is_written_whole_or_not_at_all(
    configure: Callable[..., None], tmp_path: Path
) -> None:
    configure(storage_url=(tmp_path / "files").as_uri())

    def broken(size: int) -> Iterator[bytes]:
        yield b"x" * size
        raise RuntimeError

    for size in (1, 20 * MiB):
        with pytest.raises(RuntimeError):
            storage.write("input/a", broken(size))
        assert [path for path in (tmp_path / "files").rglob("*") if path.is_file()] == []
    storage.write("input/a", [b"1", b"2"])
    with pytest.raises(RuntimeError):
        storage.write("input/a", broken(20 * MiB))
    assert b"".join(storage.chunks("input/a")) == b"12"
    storage.write("input/a", [])
    assert b"".join(storage.chunks("input/a")) == b""
