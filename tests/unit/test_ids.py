from uuid import UUID

import pytest

from xalen_batch import ids


@pytest.mark.parametrize("kind", ["file", "batch", "inv", "key", "acct"])
def test_an_id_reads_back_as_what_was_rendered(kind: ids.Kind) -> None:
    value = ids.new()
    assert ids.parse(kind, ids.render(kind, value)) == value


def test_files_and_batches_look_as_clients_know_them() -> None:
    value = UUID(int=1)
    assert ids.render("file", value) == "file-00000000000000000000000000000001"
    assert ids.render("batch", value) == "batch_00000000000000000000000000000001"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "batch_",
        "batch_1",
        "batch_" + "g" * 32,
        "batch_" + "A" * 32,
        "file-" + "0" * 32,
        "batch_" + "0" * 33,
        "batch_" + "0" * 31 + "\n",
    ],
)
def test_anything_else_is_no_id(text: str) -> None:
    assert ids.parse("batch", text) is None


def test_ids_sort_by_creation() -> None:
    made = [ids.new() for _ in range(100)]
    assert made == sorted(made)


def test_a_line_keeps_its_id_over_every_attempt() -> None:
    batch = ids.new()
    assert ids.line_id(batch, 7) == ids.line_id(batch, 7) != ids.line_id(batch, 8)
