"""The compose file against the code: no Docker engine runs in the tests."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests import ROOT
from xalen_batch import catalog
from xalen_batch.cli.main import app
from xalen_batch.config import Settings

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {
    name: service
    for name, service in SERVICES.items()
    if service["image"].startswith("xalen-batch:")
}
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
ENV_EXAMPLE = dict(
    line.split("=", 1)
    for line in (ROOT / ".env.example").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
)


def strings(value: Any) -> Iterator[str]:
    """Every string in a YAML value."""
    if isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


def test_the_parts_are_services() -> None:
    assert set(SERVICES) == {"postgres", "valkey", "migrate", "prices", "api", "worker", "beat"}
    assert set(OURS) == {"migrate", "prices", "api", "worker", "beat"}


@pytest.mark.parametrize("name", OURS)
def test_a_command_exists_and_takes_its_options(name: str) -> None:
    result = CliRunner().invoke(app, [*OURS[name]["command"], "--help"])
    assert result.exit_code == 0, result.output


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    assert CliRunner().invoke(app, ["apy", "--help"]).exit_code == 2
    assert CliRunner().invoke(app, ["api", "--hots", "0.0.0.0", "--help"]).exit_code == 2


def test_every_variable_is_a_setting() -> None:
    named = {name for service in OURS.values() for name in service["environment"]} | set(
        ENV_EXAMPLE
    )
    named |= set(re.findall(r"XALEN_\w+", DOCKERFILE))
    known = {f"XALEN_{field.upper()}" for field in Settings.model_fields}
    assert {name for name in named if name.startswith("XALEN_")} <= known


def test_every_variable_that_compose_reads_is_in_the_example() -> None:
    # `$$` is compose's way to leave a dollar to the container.
    used = {match for text in strings(COMPOSE) for match in re.findall(r"(?<!\$)\$\{(\w+)", text)}
    assert used == set(ENV_EXAMPLE)


def test_no_password_has_a_value_or_a_default() -> None:
    secrets = {name for name in ENV_EXAMPLE if name.endswith(("PASSWORD", "KEY"))}
    assert {ENV_EXAMPLE[name] for name in secrets} == {""}
    for text in strings(COMPOSE):
        for name, rest in re.findall(r"(?<!\$)\$\{(\w+_PASSWORD)([^}]*)\}", text):
            assert rest.startswith(":?"), f"{name} could be empty"
        assert not re.search(r"://[^:/]*:(?!\$\{\w+_PASSWORD:\?)[^@]+@", text), text


def test_images_are_pinned() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    for image in [service["image"] for service in SERVICES.values()] + bases:
        assert re.search(r":\d+\.\d+\.\d+\b|:\d+\.\d+-\w+$", image), image
    assert re.search(r"pip install .*\buv==\d", DOCKERFILE)


def test_the_image_runs_as_a_user_without_rights() -> None:
    last_stage = DOCKERFILE.rsplit("FROM ", 1)[1]
    assert re.search(r"^USER (?!root)\w+$", last_stage, re.MULTILINE)


# The capabilities that the stores' entrypoints need as root, before they become the server's user:
# to `chown`, to enter that user's folders, to change the mode of the data folder, and to set user
# and group.
CAPABILITIES = {
    "postgres": {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"},
    "valkey": {"CHOWN", "DAC_OVERRIDE", "SETGID", "SETUID"},
}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_only_the_rights_that_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert set(service.get("cap_add", [])) == CAPABILITIES.get(name, set())
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert "/tmp" in service["tmpfs"]
    assert not {"privileged", "network_mode", "pid", "ipc", "userns_mode", "devices"} & set(service)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_a_bound_of_memory_and_processes(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"\d+[mg]|\$\{\w+:-\d+[mg]\}", service["mem_limit"])
    assert 0 < service["pids_limit"] <= 1024


def test_valkey_is_full_before_it_is_killed() -> None:
    command = SERVICES["valkey"]["command"]
    most = int(command[command.index("--maxmemory") + 1].removesuffix("mb"))
    # A rewrite of its log forks the process: pages that change meanwhile exist twice.
    assert 2 * most <= int(SERVICES["valkey"]["mem_limit"].removesuffix("m"))
    # Through a shell the entrypoint would not become another user.
    assert command[0] == "valkey-server"


def test_only_migrate_knows_the_owner_of_the_tables() -> None:
    addresses = {
        name: service["environment"].get("XALEN_MIGRATE_DATABASE_URL", "")
        for name, service in OURS.items()
    }
    assert {name for name, address in addresses.items() if address} == {"migrate"}
    owner = re.match(r"postgresql://(\w+):\$\{POSTGRES_PASSWORD:", addresses["migrate"])
    assert owner is not None
    assert owner[1] == SERVICES["postgres"]["environment"]["POSTGRES_USER"]
    for service in OURS.values():
        serving = re.match(
            r"postgresql://(\w+):\$\{SERVE_PASSWORD:", service["environment"]["XALEN_DATABASE_URL"]
        )
        assert serving is not None
        assert serving[1] != owner[1]
        if service is not OURS["migrate"]:
            assert "POSTGRES_PASSWORD" not in "".join(strings(service))


def test_volumes_are_named_and_shared_where_files_are() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in COMPOSE["volumes"]
    folders = {
        (service["environment"]["XALEN_STORAGE_URL"], *service["volumes"])
        for service in OURS.values()
    }
    assert folders == {("file:///data/files", "data:/data")}


def test_nothing_is_published_but_the_api_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:${API_PORT:-8080}:8080"]}


def test_services_wait_for_what_they_need() -> None:
    for name in ("api", "worker", "beat"):
        assert SERVICES[name]["depends_on"] == {
            "migrate": {"condition": "service_completed_successfully"},
            "prices": {"condition": "service_completed_successfully"},
            "postgres": {"condition": "service_healthy"},
            "valkey": {"condition": "service_healthy"},
        }
    assert SERVICES["prices"]["command"] == ["prices", "sync", "--yes"]
    assert SERVICES["prices"]["depends_on"]["migrate"] == {
        "condition": "service_completed_successfully"
    }
    for name in ("postgres", "valkey", "api"):
        assert "healthcheck" in SERVICES[name]


# Seconds in addition to those of the settings: a worker records its last answers and hands its
# tasks back; PostgreSQL and Valkey write their data.
LEAST_TO_STOP = {"api": 15, "worker": 15, "beat": 5, "postgres": 60, "valkey": 30}


@pytest.mark.parametrize("name", LEAST_TO_STOP)
def test_a_service_is_killed_later_than_it_stops_by_itself(name: str) -> None:
    settings = Settings(
        **{
            key.removeprefix("XALEN_").lower(): value
            for key, value in SERVICES[name]["environment"].items()
            if key.startswith("XALEN_SHUTDOWN_")
        }
    )
    own = {
        "api": settings.shutdown_delay + settings.shutdown_grace,
        "worker": settings.shutdown_grace,
    }.get(name, 0)
    assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) >= own + LEAST_TO_STOP[name]


def test_the_grace_periods_are_those_of_the_page() -> None:
    page = (ROOT / "docs/operating.md").read_text("utf-8")
    periods = dict(re.findall(r"^\| `(\w+)` \|.* \| (\d+s) \|$", page, re.MULTILINE))
    assert periods == {name: SERVICES[name]["stop_grace_period"] for name in LEAST_TO_STOP}


def test_the_example_catalog_is_one() -> None:
    models = catalog.read(ROOT / "examples/catalog.toml")
    assert {model.backend.kind for model in models.values()} == {"openai"}
    environment = SERVICES["worker"]["environment"]
    assert {model.backend.api_key_env for model in models.values()} <= set(environment)
