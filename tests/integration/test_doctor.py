"""`doctor` on real stores: what is wrong is named, with the remedy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from tests.conftest import Stores
from xalen_batch import storage
from xalen_batch.cli.main import app


@pytest.fixture
def doctor(stores: Stores, configure: Callable[..., None], tmp_path: Path) -> Callable[[], tuple[int, dict[str, Any]]]:
    """Runs it; its exit code, and each check by name."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    configure(data_dir=folder)

    def run() -> tuple[int, dict[str, Any]]:
        result = CliRunner().invoke(app, ["doctor", "--json"])
        return result.exit_code, {check["name"]: check for check in json.loads(result.stdout)["checks"]}

    return run


def test_a_sound_installation_passes(doctor: Callable[[], tuple[int, dict[str, Any]]], valkey: redis.Redis) -> None:
    storage.store()
    code, checks = doctor()
    assert code == 0
    assert {checks[name]["status"] for name in ("python", "data folder", "database", "migrations", "redis", "storage", "catalog")} == {"ok"}
    # No model server runs here: live lines would wait, and nothing else is wrong.
    assert checks["backend of mistral-small-3-1"]["status"] == "warning"


def test_it_makes_nothing(
    doctor: Callable[[], tuple[int, dict[str, Any]]], configure: Callable[..., None], valkey: redis.Redis, tmp_path: Path
) -> None:
    configure(data_dir=tmp_path / "none", storage_url=(tmp_path / "none" / "files").as_uri())
    code, checks = doctor()
    assert (code, checks["data folder"]["status"], checks["storage"]["status"]) == (0, "warning", "warning")
    assert not (tmp_path / "none").exists()


def test_a_redis_that_evicts_is_named_with_its_remedy(doctor: Callable[[], tuple[int, dict[str, Any]]], valkey: redis.Redis) -> None:
    valkey.config_set("maxmemory-policy", "allkeys-lru")
    try:
        code, checks = doctor()
    finally:
        valkey.config_set("maxmemory-policy", "noeviction")
    assert (code, checks["redis"]["status"]) == (1, "failed")
    assert "maxmemory-policy to noeviction" in checks["redis"]["detail"]


def test_a_redis_that_forgets_is_a_warning(doctor: Callable[[], tuple[int, dict[str, Any]]], valkey: redis.Redis) -> None:
    valkey.config_set("appendonly", "no")
    try:
        code, checks = doctor()
    finally:
        valkey.config_set("appendonly", "yes")
    assert (code, checks["redis"]["status"]) == (0, "warning")


def test_a_data_folder_that_others_can_read_is_named(doctor: Callable[[], tuple[int, dict[str, Any]]], tmp_path: Path) -> None:
    (tmp_path / "data").chmod(0o755)
    code, checks = doctor()
    assert code == 1
    assert "chmod 700" in checks["data folder"]["detail"]


def test_an_absent_database_is_named(doctor: Callable[[], tuple[int, dict[str, Any]]], configure: Callable[..., None]) -> None:
    from tests.conftest import forget

    configure(database_url="postgresql://nobody:secret-word@127.0.0.1:1/none")
    forget()
    code, checks = doctor()
    assert (code, checks["database"]["status"]) == (1, "failed")
    assert "secret-word" not in json.dumps(checks)
    forget()
