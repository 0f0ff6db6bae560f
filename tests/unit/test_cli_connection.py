"""Which API and which key a command uses."""

import os
from pathlib import Path

import pytest

from xalen_batch.cli import connection, database
from xalen_batch.cli.failures import AUTH, Failed

TEST, LIVE = "xln_test_saved", "xln_live_saved"


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XALEN_DATA_DIR", str(tmp_path))
    # Integration tests of the same run have set it.
    monkeypatch.delenv("XALEN_DATABASE_URL", raising=False)
    return tmp_path


@pytest.fixture
def _saved(data_dir: Path) -> None:
    text = f'base_url = "http://127.0.0.1:9999/v1"\ntest_key = "{TEST}"\nlive_key = "{LIVE}"\n'
    (data_dir / "credentials.toml").write_text(text, "utf-8")


@pytest.mark.usefixtures("_saved")
def test_the_saved_test_key_is_the_default_and_live_is_asked_for() -> None:
    assert connection.find(None, None, live=False) == connection.Connection("http://127.0.0.1:9999/v1", TEST)
    assert connection.find(None, None, live=True).key == LIVE


@pytest.mark.usefixtures("_saved")
def test_options_win_over_xalen_over_openai_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://openai.example/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "xln_test_openai")
    assert connection.find(None, None, live=False) == connection.Connection("http://openai.example/v1", "xln_test_openai")
    monkeypatch.setenv("XALEN_BASE_URL", "http://xalen.example/v1")
    monkeypatch.setenv("XALEN_API_KEY", "xln_test_xalen")
    assert connection.find(None, None, live=False) == connection.Connection("http://xalen.example/v1", "xln_test_xalen")
    assert connection.find("http://option.example/v1", "k", live=False) == connection.Connection("http://option.example/v1", "k")


@pytest.mark.usefixtures("_saved")
def test_the_key_of_another_service_never_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")
    assert connection.find(None, None, live=False).key == TEST


def test_live_with_a_test_key_is_refused(data_dir: Path) -> None:
    with pytest.raises(Failed, match="test key") as refused:
        connection.find(None, TEST, live=True)
    assert refused.value.exit_code == AUTH


def test_no_key_says_how_to_get_one(data_dir: Path) -> None:
    with pytest.raises(Failed, match=r"xalen-batch up.* set XALEN_DATA_DIR to the folder") as refused:
        connection.find(None, None, live=False)
    assert refused.value.exit_code == AUTH


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("http://h:1/v1/", "http://h:1/v1"),
        ("https://h/proxy/v1", "https://h/proxy/v1"),
    ],
)
def test_the_address_ends_in_the_version(data_dir: Path, given: str, used: str) -> None:
    assert connection.find(given, TEST, live=False).base_url == used


def test_an_address_without_a_scheme_is_refused(data_dir: Path) -> None:
    with pytest.raises(Failed, match="not an address"):
        connection.find("localhost:8080", TEST, live=False)


def test_a_key_is_not_in_the_repr() -> None:
    assert TEST not in repr(connection.Connection("http://h/v1", TEST))


def test_operators_are_told_how_to_reach_a_database(data_dir: Path) -> None:
    with pytest.raises(Failed, match="XALEN_DATABASE_URL"):
        database.find()


def test_the_running_database_is_found(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XALEN_REDIS_URL", "redis://mine")
    monkeypatch.setenv("XALEN_DATABASE_URL", "")
    (data_dir / "run.toml").write_text('database_url = "postgresql://found"\nredis_url = "redis://found"\n', "utf-8")
    database.find()
    assert (os.environ["XALEN_DATABASE_URL"], os.environ["XALEN_REDIS_URL"]) == ("postgresql://found", "redis://mine")
