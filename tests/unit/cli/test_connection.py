"""A command sends a key only to the address of its own source."""

import os
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from xalen_batch.cli import connection, database
from xalen_batch.cli.connection import ApiConnection
from xalen_batch.cli.failures import AUTH, Failed
from xalen_batch.config import settings

TEST, LIVE = "xln_test_saved", "xln_live_saved"
SAVED_AT = "http://127.0.0.1:9999/v1"

# By source: the address and the key that it gives.
PAIRS = {
    "option": ("https://option.example/v1", "xln_test_option"),
    "XALEN": ("https://xalen.example/v1", "xln_test_xalen"),
    "OPENAI": ("https://openai.example/v1", "xln_test_openai"),
    "saved": (SAVED_AT, TEST),
}
HOME = {key: base_url for base_url, key in PAIRS.values()} | {LIVE: SAVED_AT}
NOTHING, ADDRESS, KEY, BOTH, FOREIGN = "nothing", "address", "key", "both", "foreign"


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XALEN_BASE_URL", "XALEN_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XALEN_DATA_DIR", str(tmp_path))
    # Integration tests of the same run have set it.
    monkeypatch.delenv("XALEN_DATABASE_URL", raising=False)
    return tmp_path


def save(data_dir: Path, base_url: str = SAVED_AT) -> None:
    text = f'base_url = "{base_url}"\ntest_key = "{TEST}"\nlive_key = "{LIVE}"\n'
    (data_dir / "credentials.toml").write_text(text, "utf-8")


@pytest.fixture
def _saved(data_dir: Path) -> None:
    save(data_dir)


def given(source: str, what: str) -> tuple[str | None, str | None]:
    base_url, key = PAIRS[source]
    if what == FOREIGN:
        return base_url, "sk-of-another-service"
    return base_url if what in (ADDRESS, BOTH) else None, key if what in (KEY, BOTH) else None


def decided(
    option: str, xalen: str, openai: str, *, is_saved: bool, live: bool
) -> ApiConnection | None:
    """The expected source: the first with an address or a key, which must have both.

    None: an error.
    """
    sources = [
        ("option", option),
        ("XALEN", xalen),
        ("OPENAI", NOTHING if openai == FOREIGN else openai),
    ]
    for source, what in [*sources, ("saved", BOTH if is_saved else NOTHING)]:
        if what == BOTH:
            base_url, key = PAIRS[source]
            key = LIVE if source == "saved" and live else key
            return None if live and key != LIVE else ApiConnection(base_url, key)
        if what != NOTHING:
            return None
    return None


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("is_saved", [False, True])
@pytest.mark.parametrize("openai", [NOTHING, ADDRESS, KEY, BOTH, FOREIGN])
@pytest.mark.parametrize("xalen", [NOTHING, ADDRESS, KEY, BOTH])
@pytest.mark.parametrize("option", [NOTHING, ADDRESS, KEY, BOTH])
def test_a_key_is_never_paired_with_the_address_of_another_source(
    option: str,
    xalen: str,
    openai: str,
    is_saved: bool,
    live: bool,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if is_saved:
        save(data_dir)
    for (source, what), (name, index) in product(
        (("XALEN", xalen), ("OPENAI", openai)), (("BASE_URL", 0), ("API_KEY", 1))
    ):
        if (value := given(source, what)[index]) is not None:
            monkeypatch.setenv(f"{source}_{name}", value)
    base_url, key = given("option", option)
    expected = decided(option, xalen, openai, is_saved=is_saved, live=live)
    if expected is None:
        with pytest.raises(Failed) as refused:
            connection.find(base_url, key, live)
        assert refused.value.exit_code == AUTH
        assert not any(secret in str(refused.value) for secret in (*HOME, "sk-of"))
    else:
        found = connection.find(base_url, key, live)
        assert found == expected
        assert HOME[found.key] == found.base_url


@pytest.mark.usefixtures("_saved")
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"XALEN_BASE_URL": "https://a.example"},
            ["XALEN_BASE_URL", "https://a.example/v1", "XALEN_API_KEY", SAVED_AT],
        ),
        (
            {"OPENAI_BASE_URL": "https://a.example/v1"},
            ["OPENAI_BASE_URL", "https://a.example/v1", "OPENAI_API_KEY", "unset"],
        ),
        ({"XALEN_API_KEY": "xln_test_a"}, ["XALEN_API_KEY", "XALEN_BASE_URL", SAVED_AT]),
        ({"OPENAI_API_KEY": "xln_test_a"}, ["OPENAI_API_KEY", "OPENAI_BASE_URL"]),
        (
            {"XALEN_API_KEY": "xln_test_a", "OPENAI_BASE_URL": "https://a.example"},
            ["XALEN_API_KEY", "XALEN_BASE_URL"],
        ),
    ],
)
def test_a_mismatch_says_which_variable_decided_and_what_to_do(
    variables: dict[str, str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Failed) as refused:
        connection.find(None, None, live=False)
    assert str(refused.value).startswith(words[0])
    assert all(word in str(refused.value) for word in words)


@pytest.mark.parametrize(
    ("saved", "asked"),
    [
        (SAVED_AT, "http://127.0.0.1:9999"),
        (SAVED_AT, "http://localhost:9999/v1/"),
        (SAVED_AT, "http://[::1]:9999/v1"),
        ("https://h.example:443/v1", "HTTPS://H.example/v1"),
    ],
)
def test_a_saved_key_goes_to_its_own_address_however_that_is_spelled(
    saved: str, asked: str, data_dir: Path
) -> None:
    save(data_dir, saved)
    # Not to the spelling that was asked for: [::1] may be another user's server.
    assert connection.find(asked, None, live=False) == ApiConnection(saved, TEST)


@pytest.mark.parametrize(
    ("saved", "asked"),
    [
        ("https://h.example/v1", "http://h.example/v1"),
        ("https://h.example/v1", "http://h.example:443/v1"),
        ("https://h.example/v1", "https://h.example:8443/v1"),
        ("https://h.example/team-a/v1", "https://h.example/team-b/v1"),
        ("https://h.example/v1", "https://h.example.evil.example/v1"),
        (SAVED_AT, "http://127.0.0.1:8080/v1"),
        (SAVED_AT, "https://127.0.0.1:9999/v1"),
        (SAVED_AT, "http://127.0.0.2:9999/v1"),
    ],
)
def test_a_saved_key_goes_to_no_other_scheme_host_port_or_path(
    saved: str, asked: str, data_dir: Path
) -> None:
    save(data_dir, saved)
    with pytest.raises(Failed, match="--base-url") as refused:
        connection.find(asked, None, live=False)
    assert refused.value.exit_code == AUTH


@pytest.mark.usefixtures("_saved")
def test_the_saved_test_key_is_the_default_and_live_is_asked_for() -> None:
    assert connection.find(None, None, live=False) == ApiConnection(SAVED_AT, TEST)
    assert connection.find(None, None, live=True) == ApiConnection(SAVED_AT, LIVE)


def test_live_with_a_test_key_is_refused(data_dir: Path) -> None:
    with pytest.raises(Failed, match="test key") as refused:
        connection.find("http://h", TEST, live=True)
    assert refused.value.exit_code == AUTH


def test_no_key_says_how_to_get_one(data_dir: Path) -> None:
    with pytest.raises(
        Failed, match=r"xalen-batch up.* set XALEN_DATA_DIR to the folder"
    ) as refused:
        connection.find(None, None, live=False)
    assert refused.value.exit_code == AUTH


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("http://h:1/v1/", "http://h:1/v1"),
        (" http://h:1/v1\n", "http://h:1/v1"),
        ("https://h/proxy/v1", "https://h/proxy/v1"),
        ("http://[::1]:1", "http://[::1]:1/v1"),
    ],
)
def test_the_address_ends_in_the_version(data_dir: Path, given: str, used: str) -> None:
    assert connection.find(given, TEST, live=False).base_url == used


@pytest.mark.parametrize(
    "address",
    [
        "localhost:8080",
        "ftp://h/v1",
        "http://",
        "http://h:port/v1",
        "http://h:99999/v1",
        "http://[::1/v1",
        "http://h/v1?a=b",
        "http://h/v1#a",
        "http://h\\@evil.example/v1",
        "http://h /v1",
        "http://h\t/v1",
        "http://h/\x00v1",
    ],
)
def test_what_is_not_an_address_is_refused(data_dir: Path, address: str) -> None:
    with pytest.raises(Failed, match="--base-url is not an address"):
        connection.find(address, TEST, live=False)


@pytest.mark.parametrize(
    "address",
    [
        "http://user:pa55@h/v1",
        "https://pa55@h/v1",
        "https://h:pa55@evil.example/v1",
        "http://@h/v1",
    ],
)
def test_an_address_with_a_password_is_refused_without_showing_it(
    data_dir: Path, address: str
) -> None:
    with pytest.raises(Failed, match="user name or password") as refused:
        connection.find(address, TEST, live=False)
    assert "pa55" not in str(refused.value)


@pytest.mark.parametrize("key", ["xln_test_a\nX-Other: b", "xln test", "xln_tést"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(
    data_dir: Path, key: str
) -> None:
    with pytest.raises(Failed, match="--api-key") as refused:
        connection.find("http://h", key, live=False)
    assert key not in str(refused.value)


def test_blanks_around_a_key_are_not_part_of_it(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XALEN_BASE_URL", "http://h")
    monkeypatch.setenv("XALEN_API_KEY", f"{TEST}\n")
    assert connection.find(None, None, live=False).key == TEST


def test_a_key_is_not_in_the_repr(data_dir: Path) -> None:
    assert TEST not in repr(ApiConnection("http://h/v1", TEST))


def test_operators_are_told_how_to_reach_a_database(data_dir: Path) -> None:
    with pytest.raises(Failed, match="XALEN_DATABASE_URL"):
        database.find()


def test_it_is_found_by_a_command_that_has_read_its_settings(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, configure: Callable[..., None]
) -> None:
    # Set first, so that the variable which `find` adds is taken away again.
    monkeypatch.setenv("XALEN_DATABASE_URL", "x")
    monkeypatch.delenv("XALEN_DATABASE_URL")
    configure()
    assert settings().database_url is None
    url = "postgresql://user:secret@found/xalen"
    (data_dir / "run.toml").write_text(f'database_url = "{url}"\n', "utf-8")
    database.find()
    found = settings().database_url
    assert found
    assert found.get_secret_value() == url


def test_the_running_database_is_found(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XALEN_REDIS_URL", "redis://mine")
    monkeypatch.setenv("XALEN_DATABASE_URL", "")
    (data_dir / "run.toml").write_text(
        'database_url = "postgresql://found"\nredis_url = "redis://found"\n', "utf-8"
    )
    database.find()
    assert (os.environ["XALEN_DATABASE_URL"], os.environ["XALEN_REDIS_URL"]) == (
        "postgresql://found",
        "redis://mine",
    )
