"""The samples of the deployment page agree with the code; neither systemd nor nginx runs here."""

import json
import re
import shlex

import pytest
from typer.testing import CliRunner

from tests import ROOT
from xalen_batch.api.http.pace import CLIENT_TIMEOUT
from xalen_batch.cli.main import app
from xalen_batch.errors import Unavailable

PAGE = (ROOT / "docs/deployment.md").read_text("utf-8")
UNITS = {
    path.stem: path.read_text("utf-8") for path in (ROOT / "examples/systemd").glob("*.service")
}
COMMON = (ROOT / "examples/systemd/xalen-batch-.service.d/common.conf").read_text("utf-8")
NGINX = (ROOT / "examples/nginx.conf").read_text("utf-8")


def values(unit: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit, re.MULTILINE)


@pytest.mark.parametrize("name", UNITS)
def test_what_a_unit_starts_is_a_command(name: str) -> None:
    (line,) = values(UNITS[name], "ExecStart")
    program, *arguments = shlex.split(line.replace("%i", "8081"))
    assert program == "/opt/xalen-batch/bin/xalen-batch"
    assert CliRunner().invoke(app, [*arguments, "--help"]).exit_code == 0
    assert arguments[0] in name


def test_the_units_are_those_of_the_page() -> None:
    shown = {
        f"{name}@" if at else name
        for name, at in re.findall(r"\b(xalen-batch-(?:api|worker|beat|migrate))(@?)", PAGE)
    }
    assert shown == UNITS.keys()


def test_a_unit_is_killed_as_late_as_a_service_of_compose() -> None:
    periods = dict(
        re.findall(
            r"^\| `(\w+)` \|.* \| (\d+s) \|$",
            (ROOT / "docs/operating.md").read_text("utf-8"),
            re.MULTILINE,
        )
    )
    stops = {
        name.removeprefix("xalen-batch-").rstrip("@"): values(unit, "TimeoutStopSec")
        for name, unit in UNITS.items()
    }
    assert stops == {"migrate": [], **{name: [periods[name]] for name in ("api", "worker", "beat")}}


def test_only_migrations_know_the_owner_of_the_tables() -> None:
    assert {
        name
        for name, unit in UNITS.items()
        if "/etc/xalen-batch/migrate.env" in values(unit, "EnvironmentFile")
    } == {"xalen-batch-migrate"}
    assert values(COMMON, "EnvironmentFile") == ["/etc/xalen-batch/xalen-batch.env"]
    settings = re.search(r"> /etc/xalen-batch/xalen-batch.env <<EOF\n(.*?)EOF", PAGE, re.DOTALL)
    assert settings is not None
    assert "OWNER_PASSWORD" not in settings[1]


def test_files_with_passwords_are_made_for_root_alone() -> None:
    read = {
        path.lstrip("-")
        for unit in [COMMON, *UNITS.values()]
        for path in values(unit, "EnvironmentFile")
    }
    made = set(re.findall(r"^install --mode=0600 /dev/null (\S+)$", PAGE, re.MULTILINE))
    assert made == read


def test_no_unit_gives_rights_back() -> None:
    assert values(COMMON, "User") == ["xalen-batch"]
    assert values(COMMON, "CapabilityBoundingSet") == [""]
    taken = {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "PrivateTmp": "yes",
        "SystemCallFilter": "@system-service",
    }
    for key, value in taken.items():
        assert values(COMMON, key) == [value]
    for unit in UNITS.values():
        assert not re.search(
            r"^(User|Group|\w*Capabilit\w+|Protect\w+|Private\w+|NoNewPrivileges|SystemCall\w+)=",
            unit,
            re.MULTILINE,
        )


def test_the_installer_is_that_of_the_image() -> None:
    versions = {
        match[1]
        for text in (PAGE, (ROOT / "Dockerfile").read_text("utf-8"))
        for match in re.finditer(r"\buv==(\d+\.\d+\.\d+)", text)
    }
    assert len(versions) == 1


class TestNginx:
    def test_it_tries_every_server_each_time(self) -> None:
        servers = re.findall(r"^\s+server [\d.:]+ .*;$", NGINX, re.MULTILINE)
        assert len(servers) == 2
        assert all(server.endswith(" max_fails=0;") for server in servers)

    def test_it_never_sends_a_post_twice(self) -> None:
        assert re.findall(r"proxy_next_upstream (.*);", NGINX) == ["error timeout"]

    def test_the_api_answers_before_it(self) -> None:
        waits = {
            name: int(seconds)
            for name, seconds in re.findall(r"^\s+(\w+) (\d+)s;$", NGINX, re.MULTILINE)
        }
        longer = {"client_body_timeout", "send_timeout", "proxy_send_timeout", "proxy_read_timeout"}
        assert waits.keys() == longer | {"proxy_connect_timeout"}
        assert all(waits[name] > CLIENT_TIMEOUT for name in longer)
        assert "client_max_body_size 0;" in NGINX

    def test_the_clients_address_is_never_the_clients_word(self) -> None:
        assert re.findall(r"proxy_set_header X-Forwarded-For (.*);", NGINX) == ["$remote_addr"]

    def test_its_own_answer_has_the_apis_envelope(self) -> None:
        (body,) = re.findall(r"return 503 '(.*)';", NGINX)
        error = json.loads(body)["error"]
        ours = Unavailable("").body()["error"]
        assert error.keys() == ours.keys()
        assert (error["type"], error["code"]) == (ours["type"], ours["code"])
