"""The operator's catalog: an error names the key, its value and the remedy."""

from pathlib import Path

import pytest

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
    with pytest.raises(ConfigError, match=r"catalog\.toml, which cannot be read: .*utf-8"):
        catalog.read(path)
