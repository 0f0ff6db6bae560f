"""Where uploads lie: for this user alone, and where the operator said."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from xalen_batch import storage
from xalen_batch.config import settings


@pytest.fixture(autouse=True)
def _forgotten() -> object:
    storage.store.cache_clear()
    yield
    storage.store.cache_clear()


def test_folders_are_made_for_this_user_alone(configure: Callable[..., None], tmp_path: Path) -> None:
    configure(data_dir=tmp_path / "data", storage_url=(tmp_path / "data" / "deep" / "files").as_uri())
    storage.store()
    made = [tmp_path / "data", tmp_path / "data" / "deep", tmp_path / "data" / "deep" / "files"]
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in made] == [0o700] * 3


@pytest.mark.parametrize("address", ["s3://bucket/prefix", "files", "file://relative/path", "https://host/path"])
def test_what_is_no_local_folder_is_refused_with_the_remedy(configure: Callable[..., None], address: str) -> None:
    configure(storage_url=address)
    with pytest.raises(ValidationError, match="file:///path"):
        settings()
