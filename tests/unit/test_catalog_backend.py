"""The backend's table of the catalog: an error names the field and the remedy, and no secret."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from xalen_batch import catalog
from xalen_batch.catalog_backend import BackendConfig, shown
from xalen_batch.errors import ConfigError

MODEL = "mistral-small-3-1"
BUILT_IN = tomllib.loads(resources.files("xalen_batch").joinpath("catalog.toml").read_text("utf-8"))
ONE, TWO = "http://a:8000/v1", "http://b:8000/v1"
SECRET = "sk-very-secret"


def backend(**fields: Any) -> BackendConfig:
    return catalog.parse(BUILT_IN, {"models": {MODEL: {"backend": fields}}})[MODEL].backend


def test_several_servers_are_one_backend() -> None:
    found = backend(base_urls=[f"{ONE}/", TWO])
    assert (found.kind, found.urls) == ("openai", (ONE, TWO))
    assert backend(base_url=ONE).urls == (ONE,)
    assert backend().urls == ()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"base_urls": [ONE], "base_url": TWO}, "base_url and base_urls both name servers"),
        ({"base_urls": [ONE, "host:8000"]}, "host:8000 is no address. It looks like http://host"),
        ({"base_urls": [ONE, f"{ONE}/"]}, f"{ONE} stands here twice"),
        ({"base_urls": ["http://u:a@h/v1", "http://u:b@h/v1"]}, "http://h/v1 stands here twice"),
        ({"base_urls": ONE}, "base_urls: 'http://a:8000/v1' is not a list"),
        ({"base_urls": [ONE], "kind": "simulated"}, "has no server, and base_urls names some"),
        ({"kind": "openai", "base_urls": []}, "needs the base_url of its server"),
        ({"base_url": ONE, "headers": {"X Y": "1"}}, "'X Y' has characters that no header's name"),
        ({"base_url": ONE, "headers": {"X-A": "1", "x-a": "2"}}, "x-a stands here twice"),
        ({"base_url": ONE, "headers": {"Host": "h"}}, "Host is set by the client"),
        (
            {"base_url": ONE, "headers": {"Authorization": "Basic eA=="}},
            "authorization carries the key. Name the key's variable in api_key_env",
        ),
        ({"base_url": ONE, "headers": {"X-A": f"{SECRET}\n"}}, "the value of X-A is neither"),
        ({"base_url": ONE, "headers": {"X-A": {"env": SECRET}}}, "the value of X-A is neither"),
        ({"base_url": ONE, "headers": {"X-A": {"var": SECRET}}}, "the value of X-A is neither"),
        ({"base_url": ONE, "headers": {"X-A": 1}}, "the value of X-A is neither"),
        ({"base_url": ONE, "headers": [SECRET]}, "is not a table"),
        ({"base_url": ONE, "extra_body": {"model": "m"}}, "model is set by the field model"),
        ({"base_url": ONE, "extra_body": {"stream": True}}, "stream is the line's own"),
        (
            {"base_url": ONE, "extra_body": tomllib.loads("until = 2026-01-01")},
            "until has a value that JSON lacks, such as a date",
        ),
        ({"base_url": ONE, "extra_body": {"top_p": float("nan")}}, "top_p has a value that JSON"),
        ({"base_url": ONE, "auth_header": "api-key"}, "auth_header has no key to carry"),
        (
            {"base_url": ONE, "api_key_env": "K", "auth_header": "api key"},
            "'api key' is not the name of a header",
        ),
        (
            {"base_url": ONE, "api_key_env": "K", "auth_header": "Host"},
            "Host is set by the client",
        ),
        (
            {
                "base_url": ONE,
                "api_key_env": "K",
                "auth_header": "X-Key",
                "headers": {"x-key": "1"},
            },
            "headers and auth_header both set X-Key",
        ),
        ({"base_url": "https://h/v1", "ca_file": "ca.pem"}, "ca_file is ca.pem. It must be an abs"),
        ({"base_url": ONE, "ca_file": "/etc/ca.pem"}, f"ca_file is for https, and {ONE} has no"),
    ],
)
def test_a_mistake_is_refused_with_its_remedy(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        backend(**fields)
    assert str(refused.value).startswith(f"The model catalog is not valid: models.{MODEL}.backend")
    assert words in str(refused.value)
    assert SECRET not in str(refused.value).replace(f"['{SECRET}']", "")


@pytest.mark.parametrize(
    ("auth_header", "header"),
    [
        ("Authorization: Bearer", ("authorization", "Bearer k-1")),
        ("api-key", ("api-key", "k-1")),
        ("X-Auth: Token", ("x-auth", "Token k-1")),
    ],
)
def test_the_key_goes_into_the_header_of_the_catalog(
    monkeypatch: pytest.MonkeyPatch, auth_header: str, header: tuple[str, str]
) -> None:
    monkeypatch.setenv("SOME_KEY", " k-1\n")
    monkeypatch.setenv("SOME_HEADER", "of the environment")
    found = backend(
        base_url=ONE,
        api_key_env="SOME_KEY",
        auth_header=auth_header,
        headers={
            "X-Team": "nightly",
            "X-Env": {"env": "SOME_HEADER"},
            "X-Unset": {"env": "NO_SUCH_VARIABLE"},
        },
    )
    assert found.request_headers() == {
        "x-team": "nightly",
        "x-env": "of the environment",
        header[0]: header[1],
    }
    assert found.variables == ("SOME_KEY", "SOME_HEADER", "NO_SUCH_VARIABLE")
    assert "k-1" not in repr(found)
    assert "nightly" not in repr(found)


def test_without_a_key_its_header_is_not_sent() -> None:
    assert backend(base_url=ONE, api_key_env="NO_SUCH_VARIABLE").request_headers() == {}


def test_a_key_that_no_header_can_carry_is_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_KEY", f"{SECRET}\nsecond line")
    with pytest.raises(ConfigError, match="The key in SOME_KEY") as refused:
        backend(base_url=ONE, api_key_env="SOME_KEY").request_headers()
    assert SECRET not in str(refused.value)


def test_the_certificates_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    found = backend(base_url="https://h/v1", ca_file=str(path))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        found.ca_certificates()
    path.write_text("# no certificate")
    with pytest.raises(ConfigError, match="holds no PEM certificate"):
        found.ca_certificates()
    one = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----"
    path.write_text(f"first\n{one}\nsecond\n{one}\n")
    assert found.ca_certificates() == [one.encode()] * 2


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://user:password@h:8000/v1?key=1#x", "https://h:8000/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://[::1", "an address that cannot be read"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, words: str) -> None:
    assert shown(url) == words
