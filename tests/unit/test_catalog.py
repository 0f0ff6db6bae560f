"""The operator's catalog: an error names the key, its value and the remedy."""

from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from xalen_batch import catalog
from xalen_batch.errors import ConfigError

NEW = """
[models.x]
name = "X"
owned_by = "us"
category = "compact"
parameters = "1B"
context_window = 8192
endpoints = ["/v1/rerank"]
price = { input = "0.02" }
"""


def read(tmp_path: Path, text: str) -> dict[str, catalog.Model]:
    path = tmp_path / "catalog.toml"
    path.write_text(text, "utf-8")
    return catalog.read(path)


def test_a_new_model_stands_beside_those_that_ship(tmp_path: Path) -> None:
    assert set(read(tmp_path, NEW)) == {"x", *catalog.read(None)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            NEW.replace("models", "model"),
            (
                "model: there is no such field. Did you mean models? Each model is a table,"
                " [models.ID]."
            ),
        ),
        (NEW + "[settings]\nport = 1\n", "settings: there is no such field. Each model is a table"),
        ("models = 3", "models: 3 is not a table. Each model is a table, [models.ID]."),
        ("[[models]]\nname = 'X'", "models: [{'name': 'X'}] is not a table. Each model is a table"),
        ("models.x = 1", "models.x: 1 is not a table. Each model is a table"),
        (
            "models.mistral-small-3-1 = true",
            "models.mistral-small-3-1: True is not a table. Each model is a table",
        ),
        (
            "[models.mistral-small-3-1]\nbackend = 'http://h/v1'",
            "models.mistral-small-3-1.backend: 'http://h/v1' is not a table",
        ),
        (
            NEW.replace('["/v1/rerank"]', "[]"),
            ("models.x.endpoints: [] names no endpoint. List one or more of '/v1/chat"),
        ),
        (
            NEW.replace("input =", "cached_input ="),
            "models.x.price: cached_input is a part of the input, which has no price.",
        ),
        (
            NEW.replace('["/v1/rerank"]', '"/v1/rerank"'),
            "models.x.endpoints: '/v1/rerank' is not a list",
        ),
        (
            NEW.replace("name =", 'id = "y"\nname ='),
            "models.x.id: there is no such field. The id is the table's name, [models.x].",
        ),
        (
            NEW.replace("models.x", 'models.""'),
            "models: a model's id is empty. Name it as requests do, [models.ID].",
        ),
    ],
)
def test_a_mistake_is_refused_with_its_place_and_the_remedy(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, text)
    assert str(refused.value).startswith(f"The model catalog is not valid: {words}")


def test_a_file_that_is_no_text_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "catalog.toml"
    path.write_bytes("[models.x]\nname = 'Café'".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"catalog\.toml cannot be read: .*utf-8"):
        catalog.read(path)


class TestChanges:
    """The file of the catalog in force, which changes while the process runs."""

    @pytest.fixture
    def file(
        self, tmp_path: Path, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> Path:
        path = tmp_path / "catalog.toml"
        path.write_text(NEW, "utf-8")
        configure(catalog=path)
        monkeypatch.setattr(catalog, "LOOK_EVERY", 0.0)
        monkeypatch.setattr(catalog, "SETTLED_AFTER", 3600.0)
        assert "x" in catalog.models()
        return path

    def test_a_change_is_in_force_when_two_looks_found_the_same_file(self, file: Path) -> None:
        before = catalog.fingerprint()
        file.write_text(NEW.replace("8192", "4096"), "utf-8")
        assert catalog.models()["x"].context_window == 8192
        assert catalog.models()["x"].context_window == 4096
        assert catalog.fingerprint() != before

    def test_a_change_that_is_older_than_a_second_is_in_force_at_once(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As for a process that was idle meanwhile.
        monkeypatch.setattr(catalog, "SETTLED_AFTER", -3600.0)
        file.write_text(NEW.replace("8192", "4096"), "utf-8")
        assert catalog.models()["x"].context_window == 4096

    def test_a_file_that_replaces_it_by_a_rename(self, file: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.toml"
        other.write_text(NEW.replace("models.x", "models.y"), "utf-8")
        other.replace(file)
        catalog.models()
        assert {"y"} == catalog.models().keys() - catalog.read(None).keys()

    @pytest.mark.parametrize("text", ["[models.x", "models.x = 1", "[models.x]\nprice = 1"])
    def test_a_broken_file_leaves_the_catalog_before_it_in_force(
        self, file: Path, text: str
    ) -> None:
        before = catalog.models()
        file.write_text(text, "utf-8")
        with capture_logs() as logged:
            for _ in range(5):
                assert catalog.models() is before
        assert [entry["event"] for entry in logged] == ["catalog.broken"]
        assert catalog.has_broken_file()
        file.write_text(NEW.replace("8192", "4096"), "utf-8")
        with capture_logs() as logged:
            catalog.models()
            assert catalog.models()["x"].context_window == 4096
        assert [(entry["event"], entry["models"]) for entry in logged] == [
            ("catalog.changed", ["x"])
        ]
        assert not catalog.has_broken_file()

    def test_a_model_that_was_just_added_is_found_by_who_knows_of_it(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(catalog, "LOOK_EVERY", 3600.0)
        catalog.models()
        file.write_text(NEW + NEW.replace("models.x", "models.y"), "utf-8")
        assert "y" not in catalog.models()
        assert "y" not in catalog.knowing({"x"})
        assert "y" in catalog.knowing({"x", "y"})
        # A broken file changes nothing, and neither does a model that is nowhere.
        file.write_text("[models.x", "utf-8")
        assert catalog.knowing({"z"}).keys() >= {"x", "y"}

    def test_a_file_that_is_gone_is_a_broken_one(self, file: Path) -> None:
        file.unlink()
        catalog.models()
        assert "x" in catalog.models()
        assert catalog.has_broken_file()

    def test_a_comment_changes_nothing(self, file: Path) -> None:
        before = catalog.models()
        file.write_text(NEW + "# A comment\n", "utf-8")
        for _ in range(3):
            assert catalog.models() is before

    def test_it_is_looked_at_once_a_second(
        self, file: Path, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.undo()
        configure(catalog=file)
        catalog.models()
        with monkeypatch.context() as patch:
            patch.setattr(catalog._InForce, "_look", lambda _: pytest.fail("a look"))
            for _ in range(1_000):
                catalog.models()

    def test_without_a_setting_it_is_in_the_data_folder(
        self, tmp_path: Path, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        configure(data_dir=tmp_path / "data")
        monkeypatch.setattr(catalog, "LOOK_EVERY", 0.0)
        monkeypatch.setattr(catalog, "SETTLED_AFTER", 3600.0)
        assert catalog.models().keys() == catalog.read(None).keys()
        assert catalog.source() == "the built-in catalog (XALEN_CATALOG names no file)"
        (tmp_path / "data").mkdir()
        (tmp_path / "data/catalog.toml").write_text(NEW, "utf-8")
        catalog.models()
        assert "x" in catalog.models()
        assert catalog.source() == f"{tmp_path}/data/catalog.toml over the built-in catalog"


def test_only_prices_and_descriptions_leave_running_lanes_alone(tmp_path: Path) -> None:
    model = read(tmp_path, NEW)["x"]
    for old, new, is_same in (
        ('"0.02"', '"0.03"', True),
        ('"1B"', '"2B"', True),
        ("8192", "4096", False),
        ("price =", 'backend = { base_url = "http://h/v1" }\nprice =', False),
    ):
        assert model.runs_as(read(tmp_path, NEW.replace(old, new))["x"]) is is_same
