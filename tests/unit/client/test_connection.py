"""Where the client finds the address and the key, and to which address a key is never sent."""

from pathlib import Path

import pytest
from openai import OpenAIError

from xalen import _connection

HERE, THERE = "http://127.0.0.1:8080/v1", "https://batch.example.com/v1"
TEST, LIVE, OTHER = "xln_test_file", "xln_live_file", "xln_test_other"


def save(base_url: str = HERE, folder: str = ".xalen") -> None:
    path = Path(folder) / "credentials.toml"
    path.parent.mkdir()
    path.write_text(f'base_url = "{base_url}"\ntest_key = "{TEST}"\nlive_key = "{LIVE}"\n', "utf-8")


@pytest.mark.parametrize(
    ("base_url", "api_key", "variables", "expected"),
    [
        ("", None, {}, (HERE, TEST)),
        ("", OTHER, {}, (HERE, OTHER)),
        ("", None, {"XALEN_API_KEY": OTHER}, (HERE, OTHER)),
        (THERE, OTHER, {}, (THERE, OTHER)),
        ("", OTHER, {"XALEN_BASE_URL": THERE}, (THERE, OTHER)),
        ("", None, {"XALEN_BASE_URL": THERE, "XALEN_API_KEY": OTHER}, (THERE, OTHER)),
        (THERE, None, {"XALEN_API_KEY": OTHER}, (THERE, OTHER)),
        ("", OTHER, {"XALEN_API_KEY": "xln_test_env"}, (HERE, OTHER)),
        # Another spelling of the file's address: the file's own is used.
        ("http://localhost:8080", None, {}, (HERE, TEST)),
        ("", None, {"OPENAI_BASE_URL": THERE, "OPENAI_API_KEY": "sk-1"}, (HERE, TEST)),
        ("", None, {"OPENAI_BASE_URL": THERE, "OPENAI_API_KEY": OTHER}, (HERE, TEST)),
    ],
)
def test_each_is_found_in_its_first_source(
    monkeypatch: pytest.MonkeyPatch,
    base_url: str,
    api_key: str | None,
    variables: dict[str, str],
    expected: tuple[str, str],
) -> None:
    save()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert _connection.find(base_url, api_key) == expected


@pytest.mark.parametrize(
    ("base_url", "variables", "told"),
    [
        (THERE, {}, f"is sent to {HERE} alone"),
        ("", {"XALEN_BASE_URL": THERE}, f"XALEN_BASE_URL is {THERE}"),
        (
            THERE,
            {"XALEN_BASE_URL": HERE, "XALEN_API_KEY": OTHER},
            f"the key of XALEN_API_KEY is sent to {HERE} alone",
        ),
    ],
)
def test_a_key_is_not_sent_to_an_address_that_its_source_does_not_name(
    monkeypatch: pytest.MonkeyPatch, base_url: str, variables: dict[str, str], told: str
) -> None:
    save()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OpenAIError, match=told):
        _connection.find(base_url, None)


def test_a_key_from_elsewhere_is_not_sent_to_the_remote_address_of_a_file() -> None:
    save(THERE)
    assert _connection.find("", None) == (THERE, TEST)
    assert _connection.find("", LIVE) == (THERE, LIVE)
    with pytest.raises(OpenAIError, match="for its own keys, and api_key is another one"):
        _connection.find("", OTHER)


def test_the_folder_of_the_file_is_that_of_the_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save(folder="elsewhere")
    monkeypatch.setenv("XALEN_DATA_DIR", "elsewhere")
    assert _connection.find("", None) == (HERE, TEST)


def test_live_uses_the_live_key() -> None:
    save()
    assert _connection.find("", None, live=True) == (HERE, LIVE)
    with pytest.raises(OpenAIError, match="api_key is a test key"):
        _connection.find("", OTHER, live=True)


def test_what_is_missing_is_told_with_the_remedies() -> None:
    with pytest.raises(OpenAIError, match=r"No API key\. Pass api_key, set XALEN_API_KEY, or"):
        _connection.find(HERE, None)
    with pytest.raises(OpenAIError, match=r"No address for api_key\. Pass base_url, such as http"):
        _connection.find("", OTHER)


@pytest.mark.parametrize(
    "base_url", ["batch.example.com", "ftp://a/v1", "http://", "http://a:b@host/v1", "http://a:x/"]
)
def test_an_address_that_is_none_is_refused(base_url: str) -> None:
    with pytest.raises(OpenAIError, match="base_url is not an address of an API"):
        _connection.find(base_url, OTHER)


@pytest.mark.parametrize("given", ["http://host:1", "http://host:1/", "http://host:1/v1/"])
def test_the_version_may_be_left_out(given: str) -> None:
    assert _connection.find(given, OTHER).base_url == "http://host:1/v1"


def test_a_file_that_cannot_be_read_is_named() -> None:
    save()
    Path(".xalen/credentials.toml").write_text("base_url = ", "utf-8")
    with pytest.raises(OpenAIError, match=r"\.xalen/credentials\.toml cannot be read"):
        _connection.find("", None)
